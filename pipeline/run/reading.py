"""The photos of one task: read, measured, put into groups that fit the task's budget, decoded group by group."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dladiff.errors import BusyError, NotFoundError, PhotoError, StorageError, TooLargeError
from pipeline.config import RunConfig
from pipeline.run.budget import CLEAN_BYTES, FILES, HELD_BYTES, Budget, Measured, groups, smallest
from pipeline.sources.decode import Decoded, UInt8
from pipeline.sources.decoder import FILE_BYTES, SPARE
from pipeline.sources.decoders import Decoders
from pipeline.storage.keys import shown

STREAMS = 8  # photos read, encoded or written at a time, as far as the budget allows
GONE = "gone since it was planned; the next run sees what is there then"
CHANGED = "changed while it was planned or read; the next run takes it as it is then"
LARGE_SET = "the clean set takes more than a third of max_task_bytes, and the largest are left out"
MISSING = "is not there; mend the index file"

Row = dict[str, Any]
T = TypeVar("T")


class _ChangedError(Exception):
    """A file is no longer what was listed or measured."""


@dataclass(frozen=True, eq=False)
class Source(Measured):
    """A photo that was read and measured; its bytes are kept where they fit, else read again."""

    photo: Row
    row: Row
    sha256: str
    kept: list[bytes] = field(default_factory=list)
    """The file's bytes, if any: taken out when they are decoded."""


class Reading:
    """Reads a task's photos. Leaving the context ends the decoder processes.

    `get` returns the bytes of a photo, at most as many as its second argument says. `read` is called with the bytes of
    every file that was read.
    """

    def __init__(self, config: RunConfig, get: Callable[[Row, int], bytes], read: Callable[[int], None]) -> None:
        self._config = config
        self._get, self._count = get, read
        self.budget = Budget(config.max_task_bytes)
        self._clean = 0  # bytes of the clean photos
        self._decoders = Decoders(config, min(STREAMS, config.cpus_per_actor))  # decoding is work for CPUs

    def __enter__(self) -> "Reading":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._decoders.rest()

    def measure(self, photos: Sequence[Row], rows: dict[str, Row]) -> list[Source]:
        """Read photos and measure them; one that cannot be used gets its reason in `rows`, and the others go on."""
        with ThreadPoolExecutor(STREAMS) as pool:
            found = pool.map(lambda photo: _attempt(self._measure, photo, rows[photo["uri"]]), photos)
            return [source for source in found if source is not None]

    def clean(self, photos: Sequence[Row]) -> tuple[list[UInt8], str]:
        """Return the clean set's pixels, and a note on photos of it that cannot be used."""
        rows: dict[str, Row] = {photo["uri"]: {"status": "", "reason": ""} for photo in photos}
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
        rest = "" if found else "; the photos themselves stood in for it"
        return found, f"{len(faults)} of {len(photos)} photos of the clean set cannot be used ({faults[0]}){rest}"

    def groups(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Split measured photos into groups; one that does not fit alone gets its reason in its row."""
        free = self.budget.total - self.budget.total // FILES - self._clean
        found, refused = groups(sources, free)
        for source in refused:
            self._drop(source)
            need = HELD_BYTES * source.pixels + source.working
            reason = f"too large: it takes {need} bytes and max_task_bytes leaves {free}; make it smaller or raise that"
            source.row.update({"status": "failed", "reason": reason})
        return found

    def decode(self, group: Sequence[Source]) -> dict[str, Decoded]:
        """Decode the photos of a group; whoever is done with them calls `free`."""
        self.budget.hold(sum(HELD_BYTES * source.pixels for source in group))
        try:
            return self._decode_all(group)
        finally:
            self._decoders.rest()  # none is idle while the method works

    def free(self, group: Sequence[Source]) -> None:
        """Give the bytes of a group back to the budget."""
        self.budget.hold(-sum(HELD_BYTES * source.pixels for source in group))

    def _decode_all(self, sources: Sequence[Source]) -> dict[str, Decoded]:
        with ThreadPoolExecutor(STREAMS) as pool:
            found = pool.map(lambda s: _attempt(lambda *_: self._decode(s), s.photo, s.row), sources)
            return {s.photo["uri"]: one for s, one in zip(sources, found, strict=True) if one is not None}

    def _measure(self, photo: Row, row: Row) -> Source:
        with self.budget.of(FILE_BYTES * self._most(photo) + SPARE):
            data = self._bytes(photo)
            width, height = self._decoders.dimensions(data)
            source = Source(width * height, len(data), photo, row, hashlib.sha256(data).hexdigest())
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
        """Let go of the bytes of a photo's file."""
        self.budget.drop(sum(map(len, source.kept)))
        source.kept.clear()

    def _most(self, photo: Row) -> int:
        """Bytes that are read of a photo at most: those that were listed, if a listing told any."""
        size = int(photo.get("size", 0))
        if size > self._config.max_photo_bytes:
            raise PhotoError(f"too large: {size} bytes is more than max_photo_bytes = {self._config.max_photo_bytes}")
        return size or self._config.max_photo_bytes

    def _bytes(self, photo: Row) -> bytes:
        most = self._most(photo)
        try:
            data = self._get(photo, most)
        except TooLargeError:
            if most < self._config.max_photo_bytes:
                raise _ChangedError from None
            raise PhotoError(f"too large: it has more than max_photo_bytes = {most} bytes") from None
        self._count(len(data))
        return data


def _attempt(step: Callable[[Row, Row], T], photo: Row, row: Row) -> T | None:
    """Do one step; a photo's own fault goes to its row and gives None. Storage out of reach is the run's."""
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
