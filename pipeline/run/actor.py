"""ProtectIdentity, the Ray actor: read, decode, protect, encode, store and commit the photos of one task."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq

from dladiff.core.exchange import PhotoIn
from dladiff.core.formats import FORMATS
from dladiff.core.grouping import different_people
from dladiff.errors import ConfigError, DladiffError, ModelError, PhotoError, RefusedError, StorageError
from pipeline.config import RunConfig
from pipeline.models.fetch import on_this_machine
from pipeline.process.private import private_process
from pipeline.records import commit as records
from pipeline.records.latest import unchanged
from pipeline.records.manifest import GROUP
from pipeline.records.output_format import encode_checked, output_name
from pipeline.records.schema import PhotoRow, brief, finite, finite_similarity, reasons
from pipeline.records.trace import write_trace
from pipeline.run.grouped import together
from pipeline.run.reading import STREAMS, PlannedPhoto, Reading, Source
from pipeline.run.task_rows import Payload, TaskRows
from pipeline.sources import shards
from pipeline.sources.addresses import read_allowed, roots_of
from pipeline.sources.decode import Decoded
from pipeline.sources.decoder import PIXEL_BYTES
from pipeline.sources.index_file import is_index
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape, redacted, stem
from pipeline.storage.open import open_storage
from pipeline.storage.retry import PatientStorage
from pipeline.telemetry.metrics import ActorMetrics

LATE = "late"  # status of a task that was not started before the deadline
FATAL, OUT_OF_REACH = "fatal", "storage"  # no task can be done here: models or settings, storage

_METRICS = ("linf", "linf_face", "psnr", "psnr_face", "ssim", "ssimulacra2", "ssimulacra2_face", "retained")


class ProtectIdentity:
    """One worker. Models are loaded at the first task and kept. Calls do not raise; errors become a status."""

    def __init__(self, run: dict[str, Any], run_id: str, digest: str, deadline: float | None = None) -> None:
        self.config = RunConfig(**run)
        private_process(self.config.umask)
        self.run_id = run_id
        self.rows = TaskRows(run_id, self.config.seed, digest)
        self.deadline = deadline  # seconds since the epoch; no task starts after it
        self.protector: Any = None
        self.opened: dict[str, Storage] = {}
        self.plans: dict[str, pq.ParquetFile] = {}
        self.metrics = ActorMetrics()

    def __call__(self, row: Payload) -> Payload:
        """Do one task; `row["work"]` is JSON: identity, part, parts, key, replaces, photos and clean (key, uri each).

        Returns {"result": JSON}: identity, part, status (done, failed, quarantined, skipped, late, fatal, storage),
        reason, photos, failed_photos, seconds, rows; `mixed` if the photos show different people. `fatal` and `storage`
        mean that no task can be done: the run must stop.
        """
        work = json.loads(row["work"])
        started = time.monotonic()
        try:
            work = self._planned(work) if "plan" in work else work
            result = self._attempt(work)
        except (ModelError, ConfigError) as error:
            result = {"status": FATAL, "reason": _line(error)}
        except StorageError as error:  # errors of single photos were handled: this one concerns the run
            result = {"status": OUT_OF_REACH, "reason": str(error)}
        except BaseException as error:  # an exception would end the run or lose the row
            if "photos" in work:
                result = self._failed(work, "failed", _line(error), redacted(traceback.format_exc()))
            else:  # the stored plan itself
                result = {"status": OUT_OF_REACH, "reason": _line(error)}
        photos = len(work.get("photos", ()))
        common = {"identity": work.get("identity", ""), "part": work.get("part", 0)}
        common |= {"photos": photos, "failed_photos": photos}
        seconds = round(time.monotonic() - started, 3)
        self.metrics.finished(result := common | {"reason": "", "seconds": seconds, "rows": []} | result)
        return {"result": json.dumps(result)}

    @property
    def target(self) -> Storage:
        """The output, opened at its first use: storage clients cannot be pickled."""
        if "output" not in self.opened:
            self.opened["output"] = self._open(self.config.output)
        return self.opened["output"]

    def _planned(self, work: Payload) -> Payload:
        """Return the work in a row of a stored plan, which is fetched once and checked against the driver's digest."""
        if work["plan"] not in self.plans:
            self.plans = {work["plan"]: unchanged(self.target, work)}
        group, row = divmod(work["row"], GROUP)
        column = self.plans[work["plan"]].read_row_group(group, columns=["work"])["work"]
        return dict(json.loads(column[row].as_py()))

    def _open(self, uri: str) -> Storage:
        return PatientStorage(open_storage(uri, s3=self.config.s3), self.config.patience_s, self.metrics.retried)

    def _attempt(self, work: Payload) -> Payload:
        if self.deadline is not None and time.time() > self.deadline:
            return {"status": LATE, "reason": "the time window ended before it was started; the next run does it"}
        task, key = (work["identity"], work["part"]), work["key"]
        starts = records.count_starts(self.target, task, key, self.run_id)
        if starts >= self.config.max_starts:
            reason = f"quarantined: {starts} starts without an end (a crash each time); --retry-failed tries again"
            return self._failed(work, "quarantined", reason, "")
        if self.protector is None:
            self.protector = self._load()
        start = records.write_start(self.target, task, key, self.run_id)
        try:
            result = self._protect(work)
        except Exception as error:
            with contextlib.suppress(StorageError):  # the first error is reported
                self.target.delete(start)
            if fault := self._device_fault():
                raise ModelError(f"the GPU of this worker does not compute: {fault}") from error
            raise
        self.target.delete(start)
        return result

    def _load(self) -> Any:
        module, _, name = self.config.protector.partition(":")
        kind = getattr(importlib.import_module(module), name)  # imports torch, on the worker only
        settings = on_this_machine(self.config.method_settings(), self._open)
        try:
            return kind(settings, self.config.seed, self.config.cpus_per_actor)
        except DladiffError:
            raise
        except Exception as error:  # every identity would fail in the same way
            raise ModelError(f"the models cannot be loaded: {_line(error)}") from error

    def _device_fault(self) -> str | None:
        """Return what a small computation on the GPU fails with; None: it works, or there is none."""
        check = getattr(self.protector, "device_fault", None)  # a protector of a test may have none
        return check() if check is not None else None

    def _protect(self, work: Payload) -> Payload:
        started = records.now()
        rows = {photo["uri"]: self.rows.photo(work, photo["uri"]) for photo in work["photos"]}
        seconds: Counter[str] = Counter()
        outs = []
        with Reading(self.config, self.photo_bytes, self.metrics.read) as reading:
            with _timed(seconds, "read"):
                sources = reading.measure(work["photos"], rows)
                clean, lost = reading.clean(work["clean"]) if sources else ([], "")
                lost = "" if work.get("own_clean") else lost  # each photo's own row says what is wrong with it
                groups = reading.groups(sources)
            for group in groups:
                outs += self._group(work["identity"], reading, group, clean, rows, seconds)
        if not outs:
            reason = reasons(rows.values())
            if all(row["status"] == "skipped" for row in rows.values()):
                return {"status": "skipped", "reason": reason}
            return self._failed(work, "failed", f"no photo can be used: {reason}", "", list(rows.values()))
        out = together(outs)
        how = {
            "models": out.models,
            "versions": out.versions,
            "device": out.device,
            "seconds": {stage: round(spent, 3) for stage, spent in (seconds + Counter(out.seconds)).items()},
            "peak_memory_bytes": out.peak_memory_bytes,
            "started_at": started,
            "finished_at": records.now(),
        }
        if out.trace:
            write_trace(self.target, work["identity"], work["part"], out.trace)
        mixed = different_people(out.largest_faces)
        self.metrics.worked(how["seconds"], out.peak_memory_bytes, out.device, out.steps)
        for row in rows.values():
            if row["status"] not in ("failed", "skipped"):  # these rows already have a reason
                row["reason"] = "; ".join(text for text in (row["reason"], lost, out.note, mixed) if text)
        return self._commit(work, [row | how for row in rows.values()], how) | {"mixed": bool(mixed)}

    def _group(
        self,
        identity: str,
        reading: Reading,
        group: list[Source],
        clean: list[Any],
        rows: dict[str, PhotoRow],
        seconds: Counter[str],
    ) -> list[Any]:
        """Decode, protect and store the photos of one group; return [result without pixels], [] if none was decoded."""
        with _timed(seconds, "read"):
            decoded = reading.decode(group)
        sources = {source.photo["uri"]: source for source in group}
        photos = [
            PhotoIn(
                key=uri,
                pixels=photo.pixels,
                faces=sources[uri].photo.get("faces", ()),
                file_bytes=sources[uri].size,
                transparent=photo.alpha is not None,
            )
            for uri, photo in decoded.items()
        ]
        outs = []
        if photos:
            out = self.protector.protect_identity(identity, photos, clean)

            def store(photo: Any) -> None:
                with reading.budget.of(PIXEL_BYTES * photo.pixels.shape[0] * photo.pixels.shape[1]):
                    self._store(identity, photo, decoded[photo.key], rows[photo.key])

            with _timed(seconds, "store"), ThreadPoolExecutor(STREAMS) as pool:
                list(pool.map(store, out.photos))
            outs.append(dataclasses.replace(out, photos=[]))
        reading.free(group)
        return outs

    def _commit(self, work: Payload, rows: list[PhotoRow], how: Payload) -> Payload:
        identity, part = work["identity"], work["part"]
        lost = sum(row["status"] == "failed" for row in rows)
        if not any(row.get("output_key") for row in rows):
            return self._failed(work, "failed", f"no photo was protected: {reasons(rows)}", "", rows)
        summary = self.rows.identity(work, "done", "", lost) | how
        record = self.rows.task(work) | {"photos": rows, "identity_row": summary}
        records.commit(self.target, record, replaces=work.get("replaces"))
        records.clear_failure(self.target, identity, part)
        records.clear_starts(self.target, identity, part)
        return {"status": "done", "failed_photos": lost, "rows": [brief(row) for row in rows]}

    def photo_bytes(self, photo: PlannedPhoto, most: int) -> bytes:
        """Return at most `most` bytes of a photo, from the input or, for an index file, from the photo's address."""
        if "refused" in photo:
            raise PhotoError(f"the index names it by an address that is refused: {photo['refused']}")
        if is_index(self.config.input):
            roots = roots_of(self.config.input, self.config.allow_roots)
            return read_allowed(photo["uri"], roots, self.opened, self._open, most, photo.get("shard"))
        if "input" not in self.opened:
            self.opened["input"] = self._open(self.config.input)
        return shards.read(self.opened["input"], photo["key"], most, photo.get("shard"))

    def _store(self, identity: str, photo: Any, source: Decoded, row: PhotoRow) -> None:
        """Encode and store a photo; fill its row."""
        row |= {"status": photo.status, "faces": photo.faces, "similarity": finite_similarity(photo.similarity)}
        row |= {name: finite(getattr(photo, name)) for name in _METRICS} | {"geometry": photo.geometry}
        row["reason"] = "; ".join(text for text in (photo.reason, row["reason"]) if text)
        if photo.status == "failed":
            return
        try:
            opt_out = self.config.method_config().output.opt_out
            data = encode_checked(photo.pixels, source.icc, source.alpha, photo.codec, opt_out)
        except Exception as error:  # the other photos are stored nevertheless
            row |= {"status": "failed", "reason": f"cannot be encoded: {_line(error)}"}
            return
        sha = hashlib.sha256(data).hexdigest()
        kind = FORMATS[photo.codec.format]
        key = f"photos/{escape(identity)}/{output_name(stem(row['source_uri']), sha, kind)}"
        try:
            self.target.put(key, data, kind.content_type)
        except RefusedError as error:  # this key or size; other storage errors end the run
            row |= {"status": "failed", "reason": str(error)}
            return
        self.metrics.wrote(len(data))
        row |= {"output_key": key, "output_uri": self.target.uri_of(key), "output_sha256": sha}
        row |= self.config.layer_settings(faces=bool(photo.faces))

    def _failed(
        self, work: Payload, status: str, reason: str, trace: str, rows: list[PhotoRow] | None = None
    ) -> Payload:
        """Write the failure record and return the result; a storage error becomes status `storage`."""
        if rows is None:
            rows = [self.rows.photo(work, p["uri"]) | {"reason": reason} for p in work["photos"]]
        about = {"status": status, "reason": reason, "traceback": trace, "photos": rows}
        record = self.rows.task(work) | about | {"identity_row": self.rows.identity(work, status, reason, len(rows))}
        try:
            records.fail(self.target, record)
        except DladiffError as error:
            return {"status": OUT_OF_REACH, "reason": str(error)}
        return {"status": status, "reason": reason, "rows": [brief(row) for row in rows]}


@contextlib.contextmanager
def _timed(seconds: Counter[str], stage: str) -> Iterator[None]:
    clock = time.monotonic()
    yield
    seconds[stage] += time.monotonic() - clock  # type: ignore[assignment]


def _line(error: BaseException) -> str:
    text = redacted(" ".join(str(error).split()))
    return text if isinstance(error, DladiffError) else f"{type(error).__name__}: {text}"
