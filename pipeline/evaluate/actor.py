"""EvaluateIdentity: the Ray actor of an evaluation. For one row it reads photos, attacks, evaluates and stores."""

import contextlib
import dataclasses
import hashlib
import io
import json
import random
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dladiff.core.arrays import Pixels
from dladiff.errors import BusyError, ConfigError, DladiffError, ModelError, NotFoundError, PhotoError, StorageError
from dladiff.evaluation.attacks import ENCODER_ONLY
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.networks import EvaluationModels
from pipeline.evaluate.plan import Row
from pipeline.process.private import private_process
from pipeline.records import commit as records
from pipeline.records.output_format import PNG, encode_png
from pipeline.sources.decode import decode
from pipeline.sources.originals import Originals, named
from pipeline.storage.base import Storage
from pipeline.storage.keys import redacted
from pipeline.storage.open import open_storage, read_uri
from pipeline.storage.retry import PatientStorage

if TYPE_CHECKING:
    from dladiff.evaluation.evaluator import Embeddings

PATIENCE_S = 300.0
"""Seconds of retries while storage is overloaded or out of reach."""
MAX_CACHED_REFERENCES = 4
"""Identities whose reference embeddings an actor keeps."""


class EvaluateIdentity:
    """Evaluates rows, with networks that it loads at first use and keeps. A call never raises: it returns a status."""

    def __init__(self, config: dict[str, Any], run_id: str) -> None:
        self.config, self.run_id = EvaluateConfig(**config), run_id
        private_process(self.config.umask)
        self.opened: dict[str, Storage] = {}
        self.sources: Originals | None = None
        self.references: dict[str, tuple[Embeddings, int]] = {}
        self.models = EvaluationModels(self.config)

    def __call__(self, row: Row) -> Row:
        """Evaluate one row. `row["work"]` is a row of `pipeline.evaluate.plan` as JSON.

        Returns {"result": JSON} with key, status (done, no_photo, failed, fatal, storage), reason and seconds.
        """
        work = json.loads(row["work"])
        clock = time.monotonic()
        try:
            result = self._attempt(work)
        except (ModelError, ConfigError) as error:
            result = {"status": "fatal", "reason": str(error)}
        except StorageError as error:
            result = {"status": "storage", "reason": str(error)}
        except BaseException as error:  # an exception would end the run or lose the row
            result = self._failed(work, redacted(f"{type(error).__name__}: {error}"), traceback.format_exc())
        names = ("key", "identity", "condition", "attack", "preprocessing")
        about = {name: work[name] for name in names} | {"seconds": round(time.monotonic() - clock, 1)}
        return {"result": json.dumps({"reason": ""} | about | result)}

    @property
    def results(self) -> Storage:
        """The storage of the results, opened at first use."""
        if "results" not in self.opened:
            self.opened["results"] = self._open(self.config.results)
        return self.opened["results"]

    def _open(self, uri: str) -> Storage:
        return PatientStorage(open_storage(uri), PATIENCE_S)

    def _attempt(self, work: Row) -> Row:
        key = work["key"]
        if records.count_starts(self.results, (key, 0), key, self.run_id) >= self.config.max_starts:
            return self._failed(work, f"{self.config.max_starts} starts without an end: each crashed", "")
        start = records.write_start(self.results, (key, 0), key, self.run_id)
        try:
            record = self._evaluate(work)
            self.results.put_if_absent(f"rows/{key}.json", json.dumps(record, allow_nan=False).encode())
        finally:
            with contextlib.suppress(StorageError):  # do not hide an earlier error
                self.results.delete(start)
        self.results.delete(f"failed/{key}.json")
        return {"status": record["status"], "reason": record["reason"]}

    def _failed(self, work: Row, reason: str, trace: str) -> Row:
        record = _about(work) | {"status": "failed", "reason": reason, "traceback": redacted(trace)}
        try:
            self.results.put(f"failed/{work['key']}.json", json.dumps(record).encode())
        except DladiffError as error:
            return {"status": "storage", "reason": str(error)}
        return {"status": "failed", "reason": reason}

    def _evaluate(self, work: Row) -> Row:
        clock, attack, networks = time.monotonic(), work["attack"], self.models.networks
        self.models.check()
        run_attack = self.models.attack(attack, work["base"])
        pairs = self._photos(work)
        preprocess = self.models.preprocessing(work["preprocessing"])
        preprocessed = [preprocess(after) for _, after in pairs]
        record = _about(work) | {
            "status": "done",
            "reason": "",
            "photos": len(work["photos"]),
            "dropped": 0,
            "images": {},
            "protected": [],
            "faces": {},
            "prompts": list(self.config.prompts),
            "features": None,
            "feature_network": networks.features.name,
            "evaluator": [{"name": e.name, "sha256": e.sha256} for e in networks.evaluator.encoders],
        }
        if attack == ENCODER_ONLY:
            self._measure_photos(record, work, pairs, preprocessed)
        else:
            self._measure_attack(record, work, pairs, preprocessed, run_attack)
        return record | {"seconds": round(time.monotonic() - clock, 1), "finished_at": records.now()}

    def _measure_photos(
        self, record: Row, work: Row, pairs: list[tuple[Pixels, Pixels]], preprocessed: list[Pixels]
    ) -> None:
        """Add similarity and visible quality to the record; for clean photos also the features of FID's reference set.

        Without other clean photos there is no reference: the originals' own mean would contain the compared photo.
        """
        from dladiff.evaluation.scores import features_of, protected_row

        reference, _ = self._reference(work)
        for (before, after), photo in zip(pairs, preprocessed, strict=True):
            stored = after if record["preprocessing"] == "none" else None
            record["protected"].append(protected_row(before, photo, stored, self.models.networks, reference))
        record["dropped"] = sum(r["original_face"] and not r["face"] for r in record["protected"])
        if record["condition"] == "clean" and record["preprocessing"] == "none":
            crops = self.models.crops(preprocessed, record["base"])
            if crops:
                record["features"] = self._put_features(
                    record["key"], [features_of(crops, self.models.networks.features)]
                )

    def _measure_attack(
        self, record: Row, work: Row, pairs: list[tuple[Pixels, Pixels]], preprocessed: list[Pixels], run_attack: Any
    ) -> None:
        """Run the attack on the attacker's crops and add the scores of the generated pictures to the record."""
        from dladiff.evaluation.scores import features_of, generated_rows

        crops = self.models.crops(preprocessed, work["base"])
        record["dropped"] = len(preprocessed) - len(crops)
        generated = run_attack(crops, work["seed"]) if crops else {}
        if not any(generated.values()):
            record["status"] = "no_photo"
            record["dropped"] = len(preprocessed)
            return
        originals, _ = self.models.networks.evaluator.mean_embedding([before for before, _ in pairs])
        reference, count = self._reference(work)
        record["references"], record["reference_set"] = count, "other photos"
        if not reference:
            reference, record["reference_set"] = originals, "originals of the protected photos"
        if not reference:
            raise PhotoError("no face is found in any clean photo of this identity: nothing to compare with")
        networks = dataclasses.replace(self.models.networks, safety=self.models.base(work["base"])[1])
        again = {name.partition("=")[0]: self.models.preprocessing(name) for name in self.config.rescores}
        record["images"] = {p: generated_rows(generated[p], reference, originals, networks, again) for p in generated}
        for i, (prompt, pictures) in enumerate(generated.items()):
            keys = [f"faces/{work['key']}/{i}-{j:02d}{PNG.suffix}" for j in range(min(self.config.kept, len(pictures)))]
            for key, picture in zip(keys, pictures, strict=False):
                self.results.put(key, encode_png(picture), PNG.content_type)
            record["faces"][prompt] = keys
        features = [features_of(pictures, networks.features) for pictures in generated.values()]
        record["features"] = self._put_features(work["key"], features)

    def _photos(self, work: Row) -> list[tuple[Pixels, Pixels]]:
        """Return each photo's original and the version that the attacker has.

        Raises PhotoError if one cannot be read: a row of fewer photos would not be comparable with the others.
        """
        pairs = []
        protected = _protected_indices(work)
        for index, photo in enumerate(work["photos"]):
            try:
                before = self._original(photo["source_uri"], photo["source_sha256"])
                after = before
                if index in protected:
                    after = self._condition(work["condition"], photo, before)
            except BusyError:
                raise
            except (PhotoError, StorageError) as error:
                raise PhotoError(f"{photo['source_uri']}: {error}") from error
            pairs.append((before, after))
        return pairs

    def _condition(self, condition: str, photo: Row, before: Pixels) -> Pixels:
        if condition == "clean":
            return before
        run = photo["protected"][self.config.name if condition == "noise" else condition]
        after = _pixels(read_uri(run["output_uri"], self.opened, self._open, run["limit"]), run["output_sha256"])
        if after.shape != before.shape:
            raise PhotoError("the protected photo and its original differ in size; protect it again")
        if condition == "noise":
            from dladiff.evaluation.noise import noise_like

            return noise_like(before, after, 0, photo["source_sha256"])
        return after

    def _original(self, uri: str, sha256: str | None = None) -> Pixels:
        """Return the pixels of an original or a reference photo; it must be below the input or the references."""
        if self.sources is None:
            roots = [*self.config.inputs, *([self.config.references] if self.config.references else [])]
            self.sources = named(roots, self._open)
        return _pixels(self.sources.read(uri), sha256)

    def _reference(self, work: Row) -> tuple["Embeddings", int]:
        """Return the mean embedding of the identity's reference photos and their number, cached for the next rows."""
        name = work["identity"]
        if name not in self.references:
            photos = []
            for uri in work["references"]:
                with contextlib.suppress(PhotoError, NotFoundError):
                    photos.append(self._original(uri))
            while len(self.references) >= MAX_CACHED_REFERENCES:
                self.references.pop(next(iter(self.references)))
            self.references[name] = self.models.networks.evaluator.mean_embedding(photos)
        return self.references[name]

    def _put_features(self, key: str, parts: list[Any]) -> str:
        out = io.BytesIO()
        np.savez(out, *parts)
        storage_key = f"features/{key}.npz"
        self.results.put(storage_key, out.getvalue())
        return storage_key


def _pixels(data: bytes, sha256: str | None) -> Pixels:
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise PhotoError("the file has another checksum than when it was protected")
    return decode(data).pixels


def _protected_indices(work: Mapping[str, Any]) -> set[int]:
    """Return the indices of the protected photos: a random share by identity and seed, the same for all methods."""
    indices = list(range(len(work["photos"])))
    random.Random(f"{work['seed']}/{work['identity']}").shuffle(indices)
    return set(indices[: max(1, round(len(indices) * work["share"] / 100))])


def _about(work: Mapping[str, Any]) -> Row:
    names = ("key", "identity", "condition", "attack", "base", "preprocessing", "share", "seed")
    return {name: work[name] for name in names}
