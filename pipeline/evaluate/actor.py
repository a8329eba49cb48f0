"""EvaluateIdentity: what a Ray actor does with one row; read, be the thief, be the judge, put, commit."""

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

from dladiff.core.arrays import Pixels as UInt8
from dladiff.errors import BusyError, ConfigError, DladiffError, ModelError, NotFoundError, PhotoError, StorageError
from pipeline.evaluate.config import ENCODER_ONLY, EvaluateConfig
from pipeline.evaluate.networks import EvaluationModels
from pipeline.process.private import private_process
from pipeline.records import commit as records
from pipeline.records.output_format import PNG
from pipeline.sources.decode import decode
from pipeline.sources.originals import Originals, named
from pipeline.storage.base import Storage
from pipeline.storage.keys import redacted
from pipeline.storage.open import open_storage, read_uri
from pipeline.storage.retry import PatientStorage

if TYPE_CHECKING:
    from dladiff.evaluation.judge import Embeddings

PATIENCE_S = 300.0
HELD = 4  # identities whose reference embeddings an actor keeps

Row = dict[str, Any]


class EvaluateIdentity:
    """One worker: networks are loaded when first needed, and stay. A call never raises; a fault is a status."""

    def __init__(self, config: dict[str, Any], run_id: str) -> None:
        self.config, self.run_id = EvaluateConfig(**config), run_id
        private_process(self.config.umask)
        self.opened: dict[str, Storage] = {}
        self.sources: Originals | None = None
        self.references: dict[str, tuple[Embeddings, int]] = {}
        self.models = EvaluationModels(self.config)

    def __call__(self, row: Row) -> Row:
        """Do one row; `row["work"]` is JSON as `evaluation_plan` makes it.

        The row that goes back holds {"result": JSON}: key, status (done, no_photo, failed, fatal, storage), reason.
        """
        work = json.loads(row["work"])
        clock = time.monotonic()
        try:
            result = self._attempt(work)
        except (ModelError, ConfigError) as error:
            result = {"status": "fatal", "reason": str(error)}
        except StorageError as error:
            result = {"status": "storage", "reason": str(error)}
        except BaseException as error:  # a row that raised would end the run or vanish
            result = self._failed(work, redacted(f"{type(error).__name__}: {error}"), traceback.format_exc())
        names = ("key", "identity", "condition", "attack", "preprocessing")
        about = {name: work[name] for name in names} | {"seconds": round(time.monotonic() - clock, 1)}
        return {"result": json.dumps({"reason": ""} | about | result)}

    @property
    def results(self) -> Storage:
        """The results, opened at their first use."""
        if "results" not in self.opened:
            self.opened["results"] = self._open(self.config.results)
        return self.opened["results"]

    def _open(self, uri: str) -> Storage:
        return PatientStorage(open_storage(uri), PATIENCE_S)

    def _attempt(self, work: Row) -> Row:
        key = work["key"]
        if records.count_starts(self.results, (key, 0), key, self.run_id) >= self.config.max_starts:
            return self._failed(work, f"{self.config.max_starts} starts without an end (a crash each time)", "")
        start = records.write_start(self.results, (key, 0), key, self.run_id)
        try:
            record = self._evaluate(work)
            self.results.put_if_absent(f"rows/{key}.json", json.dumps(record, allow_nan=False).encode())
        finally:
            with contextlib.suppress(StorageError):  # the first error is the one to tell
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
        way = self.models.way(work["preprocessing"])
        shown = [way(after) for _, after in pairs]
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
            "judge": [{"name": e.name, "sha256": e.sha256} for e in networks.judge.encoders],
        }
        if attack == ENCODER_ONLY:
            self._seen_by_encoders(record, pairs, shown)
        else:
            self._customized(record, work, pairs, shown, run_attack)
        return record | {"seconds": round(time.monotonic() - clock, 1), "finished_at": records.now()}

    def _seen_by_encoders(self, record: Row, pairs: list[tuple[UInt8, UInt8]], shown: list[UInt8]) -> None:
        """ISM_pro and visible quality; of the clean photos also the squares that FID compares with."""
        from dladiff.evaluation.scores import features_of, protected_row

        for (before, after), photo in zip(pairs, shown, strict=True):
            stored = after if record["preprocessing"] == "none" else None
            record["protected"].append(protected_row(before, photo, stored, self.models.networks))
        record["dropped"] = sum(r["original_face"] and not r["face"] for r in record["protected"])
        if record["condition"] == "clean" and record["preprocessing"] == "none":
            squares = self.models.squares(shown, record["base"])
            if squares:
                record["features"] = self._put_features(
                    record["key"], [features_of(squares, self.models.networks.features)]
                )

    def _customized(
        self, record: Row, work: Row, pairs: list[tuple[UInt8, UInt8]], shown: list[UInt8], run_attack: Any
    ) -> None:
        """Let the thief learn from what it has, and the judge read what comes out."""
        from dladiff.evaluation.scores import features_of, generated_rows

        squares = self.models.squares(shown, work["base"])
        record["dropped"] = len(shown) - len(squares)
        made = run_attack(squares, work["seed"]) if squares else {}
        if not any(made.values()):
            record["status"] = "no_photo"
            record["dropped"] = len(shown)
            return
        originals, _ = self.models.networks.judge.mean([before for before, _ in pairs])
        reference, count = self._reference(work)
        record["references"], record["reference_set"] = count, "other photos"
        if not reference:
            reference, record["reference_set"] = originals, "originals of the protected photos"
        if not reference:
            raise PhotoError("no face is found in any clean photo of this identity: nothing to compare with")
        networks = dataclasses.replace(self.models.networks, safety=self.models.base(work["base"])[1])
        record["images"] = {p: generated_rows(made[p], reference, originals, networks) for p in made}
        for i, (prompt, pictures) in enumerate(made.items()):
            keys = [f"faces/{work['key']}/{i}-{j:02d}{PNG.suffix}" for j in range(min(self.config.kept, len(pictures)))]
            for key, picture in zip(keys, pictures, strict=False):
                self.results.put(key, PNG.encode(picture), PNG.content_type)
            record["faces"][prompt] = keys
        features = [features_of(pictures, networks.features) for pictures in made.values()]
        record["features"] = self._put_features(work["key"], features)

    def _photos(self, work: Row) -> list[tuple[UInt8, UInt8]]:
        """Original and what the thief has of each photo.

        Raises PhotoError for one that cannot be read: a row of fewer photos would stand beside rows of all.
        """
        pairs = []
        protected = _protected_places(work)
        for place, photo in enumerate(work["photos"]):
            try:
                before = self._original(photo["source_uri"], photo["source_sha256"])
                after = before
                if place in protected:
                    after = self._condition(work["condition"], photo, before)
            except BusyError:
                raise
            except (PhotoError, StorageError) as error:
                raise PhotoError(f"{photo['source_uri']}: {error}") from error
            pairs.append((before, after))
        return pairs

    def _condition(self, condition: str, photo: Row, before: UInt8) -> UInt8:
        if condition == "clean":
            return before
        run = photo["protected"][self.config.name if condition == "noise" else condition]
        after = _pixels(read_uri(run["output_uri"], self.opened, self._open, run["limit"]), run["output_sha256"])
        if after.shape != before.shape:
            raise PhotoError("the protected photo has another size than its original; protect it again")
        if condition == "noise":
            from dladiff.evaluation.noise import noise_like

            return noise_like(before, after, 0, photo["source_sha256"])
        return after

    def _original(self, uri: str, sha256: str | None = None) -> UInt8:
        """The pixels of an original or of a reference photo, which lie below the input or the references."""
        if self.sources is None:
            roots = [*self.config.inputs, *([self.config.references] if self.config.references else [])]
            self.sources = named(roots, self._open)
        return _pixels(self.sources.read(uri), sha256)

    def _reference(self, work: Row) -> tuple["Embeddings", int]:
        """Mean embedding of the identity's clean photos, and of how many; kept for the next rows."""
        name = work["identity"]
        if name not in self.references:
            photos = []
            for uri in work["references"]:
                with contextlib.suppress(PhotoError, NotFoundError):
                    photos.append(self._original(uri))
            while len(self.references) >= HELD:
                self.references.pop(next(iter(self.references)))
            self.references[name] = self.models.networks.judge.mean(photos)
        return self.references[name]

    def _put_features(self, key: str, parts: list[Any]) -> str:
        out = io.BytesIO()
        np.savez(out, *parts)
        place = f"features/{key}.npz"
        self.results.put(place, out.getvalue())
        return place


def _pixels(data: bytes, sha256: str | None) -> UInt8:
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise PhotoError("the file has changed since it was protected (another checksum)")
    return decode(data).pixels


def _protected_places(work: Mapping[str, Any]) -> set[int]:
    """Which photos are protected: the share, drawn once for an identity and seed, the same for every method."""
    places = list(range(len(work["photos"])))
    random.Random(f"{work['seed']}/{work['identity']}").shuffle(places)
    return set(places[: max(1, round(len(places) * work["share"] / 100))])


def _about(work: Mapping[str, Any]) -> Row:
    names = ("key", "identity", "condition", "attack", "base", "preprocessing", "share", "seed")
    return {name: work[name] for name in names}
