"""Read and measure a task's photos, split them into groups that fit its budget, decode group by group."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dladiff.core.arrays import Pixels
from dladiff.errors import BusyError, NotFoundError, PhotoError, StorageError, TooLargeError
from pipeline.config import RunConfig
from pipeline.records.schema import PhotoRow
from pipeline.run.budget import CLEAN_BYTES, FILES, Budget, Measured, groups, smallest
from pipeline.sources.decode import Decoded
from pipeline.sources.decoder import FILE_BYTES, SPARE
from pipeline.sources.decoders import Decoders
from pipeline.storage.keys import shown

STREAMS = 8  # photos read, encoded or written at a time, within the budget
GONE = "gone since it was planned; the next run lists the input again"
CHANGED = "changed while it was planned or read; the next run protects the new version"
LARGE_SET = "the clean set takes more than a third of max_task_bytes, and its largest photos are left out"
MISSING = "is not there; fix the index file"

PlannedPhoto = dict[str, Any]
"""A photo of a task: key, uri, size; `refused` or `missing` for an address that cannot be read."""
T = TypeVar("T")


class _ChangedError(Exception):
    """A file changed since it was listed or measured."""


@dataclass(frozen=True, eq=False)
class Source(Measured):
    """A photo that was read and measured; its file's bytes are kept if they fit, else read again."""

    photo: PlannedPhoto = field(default_factory=dict)
    row: PhotoRow = field(default_factory=dict)
    sha256: str = ""
    kept: list[bytes] = field(default_factory=list)
    """The file's bytes, or empty; removed when they are decoded."""


class Reading:
    """Reads a task's photos. Leaving the context ends the decoder processes.

    `get(photo, limit)` returns at most `limit` bytes of a photo. `read` is called with the size of every file read.
    """

    def __init__(
        self, config: RunConfig, get: Callable[[PlannedPhoto, int], bytes], read: Callable[[int], None]
    ) -> None:
        self._config = config
        self._get, self._count = get, read
        self.budget = Budget(config.max_task_bytes)
        method = config.method_config()
        self._whole = method.region == "photo" and method.layers != "zero_shot"
        self._clean = 0  # bytes of the clean photos
        self._decoders = Decoders(config, min(STREAMS, config.cpus_per_actor))  # one decoder a CPU

    def __enter__(self) -> "Reading":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._decoders.end()

    def measure(self, photos: Sequence[PlannedPhoto], rows: dict[str, PhotoRow]) -> list[Source]:
        """Read and measure photos; a photo that cannot be used gets a reason in `rows` and is left out."""
        with ThreadPoolExecutor(STREAMS) as pool:
            found = pool.map(lambda photo: _attempt(self._measure, photo, rows[photo["uri"]]), photos)
            return [source for source in found if source is not None]

    def clean(self, photos: Sequence[PlannedPhoto]) -> tuple[list[Pixels], str]:
        """Return the clean set's pixels, and a note about its photos that cannot be used, "" if all can."""
        rows: dict[str, PhotoRow] = {photo["uri"]: {"status": "", "reason": ""} for photo in photos}
        sources = self.measure(photos, rows)
        fitting = smallest(sources, self.budget.total)
        for source in sources:
            if source not in fitting:
                self._drop(source)
                source.row.update({"status": "failed", "reason": LARGE_SET})
        self._clean = sum(CLEAN_BYTES * source.pixels for source in fitting)
        self.budget.hold(self._clean)
        found = [photo.pixels for photo in self._decode_all(fitting).values()]
        faults = [f"{shown(uri)}: {row['reason']}" for uri, row in rows.items() if row["status"]]
        if not faults:
            return found, ""
        rest = "" if found else "; the photos themselves were used instead"
        return found, f"{len(faults)} of {len(photos)} photos of the clean set cannot be used ({faults[0]}){rest}"

    def groups(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Split photos into groups; a photo that does not fit alone gets a reason in its row and is left out."""
        free = self.budget.total - self.budget.total // FILES - self._clean
        found, refused = groups(sources, free)
        for source in refused:
            self._drop(source)
            need = source.held + source.working
            reason = (
                f"too large: it takes {need} bytes and max_task_bytes leaves {free}; shrink it or raise max_task_bytes"
            )
            source.row.update({"status": "failed", "reason": reason})
        return found

    def decode(self, group: Sequence[Source]) -> dict[str, Decoded]:
        """Return the decoded photos of a group by URI; call `free` when they are no longer needed."""
        self.budget.hold(sum(source.held for source in group))
        try:
            return self._decode_all(group)
        finally:
            self._decoders.end()  # no idle decoders while the method runs

    def free(self, group: Sequence[Source]) -> None:
        """Give the bytes of a group back to the budget."""
        self.budget.hold(-sum(source.held for source in group))

    def _decode_all(self, sources: Sequence[Source]) -> dict[str, Decoded]:
        with ThreadPoolExecutor(STREAMS) as pool:
            found = pool.map(lambda s: _attempt(lambda *_: self._decode(s), s.photo, s.row), sources)
            return {s.photo["uri"]: one for s, one in zip(sources, found, strict=True) if one is not None}

    def _measure(self, photo: PlannedPhoto, row: PhotoRow) -> Source:
        with self.budget.of(FILE_BYTES * self._most(photo) + SPARE):
            data = self._bytes(photo)
            width, height = self._decoders.dimensions(data)
            sha256 = hashlib.sha256(data).hexdigest()
            source = Source(width * height, len(data), self._whole, photo, row, sha256)
            if self.budget.keep(len(data)):
                source.kept.append(data)
            return source

    def _decode(self, source: Source) -> Decoded:
        with self.budget.of(source.decoding):
            data = source.kept[0] if source.kept else self._bytes(source.photo)
            self._drop(source)
            if hashlib.sha256(data).hexdigest() != source.sha256:
                raise _ChangedError
            done = self._decoders.decode(data, source.pixels)
        height, width = done.pixels.shape[:2]
        source.row.update({"source_sha256": source.sha256, "width": width, "height": height, "reason": done.note})
        return done

    def _drop(self, source: Source) -> None:
        """Free the bytes of a photo's file."""
        self.budget.drop(sum(map(len, source.kept)))
        source.kept.clear()

    def _most(self, photo: PlannedPhoto) -> int:
        """Return the most bytes to read of a photo: its listed size, else max_photo_bytes. Raises PhotoError."""
        size = int(photo.get("size", 0))
        if size > self._config.max_photo_bytes:
            raise PhotoError(f"too large: {size} bytes is more than max_photo_bytes = {self._config.max_photo_bytes}")
        return size or self._config.max_photo_bytes

    def _bytes(self, photo: PlannedPhoto) -> bytes:
        most = self._most(photo)
        try:
            data = self._get(photo, most)
        except TooLargeError:
            if most < self._config.max_photo_bytes:
                raise _ChangedError from None
            raise PhotoError(f"too large: it has more than max_photo_bytes = {most} bytes") from None
        self._count(len(data))
        return data


def _attempt(step: Callable[[PlannedPhoto, PhotoRow], T], photo: PlannedPhoto, row: PhotoRow) -> T | None:
    """Call `step`; an error of the photo goes to its row, and the result is None. BusyError is raised."""
    try:
        return step(photo, row)
    except BusyError:
        raise
    except NotFoundError:
        row |= {"status": "failed", "reason": MISSING} if "missing" in photo else {"status": "skipped", "reason": GONE}
    except _ChangedError:
        row |= {"status": "skipped", "reason": CHANGED}
    except (PhotoError, StorageError) as error:
        row |= {"status": "failed", "reason": str(error)}
    return None
