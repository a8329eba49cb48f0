"""The memory budget of one task, in bytes: what it holds, and which photos fit together."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dladiff.core.arrays import MAX_CELLS
from pipeline.sources.decoder import FILE_BYTES, PIXEL_BYTES

HELD_BYTES = 7  # bytes a pixel while a photo's group is processed: RGB before, RGB after, alpha
FIELD_BYTES = 15  # bytes a cell of layer 1's field: RGB floats, RGB bytes
CLEAN_BYTES = 3  # bytes a pixel of a clean photo: RGB
METHOD_BYTES = 190  # bytes a pixel of the one photo being protected: measured with the tiny profile on the CPU
FILES = 8  # 1/FILES of the budget holds files between measuring and decoding
CLEAN = 3  # 1/CLEAN of the budget holds the clean photos

T = TypeVar("T", bound="Measured")


@dataclass(frozen=True, eq=False)
class Measured:
    """Size of a photo: pixels (width times height, from its header) and bytes of its file."""

    pixels: int
    size: int
    whole: bool = False
    """Layer 1 keeps a field over the whole photo (`region: photo`)."""

    @property
    def decoding(self) -> int:
        """Temporary bytes of decoding or encoding."""
        return PIXEL_BYTES * self.pixels + FILE_BYTES * self.size

    @property
    def held(self) -> int:
        """Bytes while the photo's group is processed."""
        return HELD_BYTES * self.pixels + self.whole * FIELD_BYTES * min(self.pixels, MAX_CELLS)

    @property
    def working(self) -> int:
        """Temporary bytes of the largest step."""
        return max(self.decoding, METHOD_BYTES * self.pixels)


class Budget:
    """A number of bytes shared by threads. A request that can never fit runs alone."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._held = self._working = self._kept = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and reserve them inside the context."""
        with self._changed:
            self._changed.wait_for(lambda: not self._working or self._held + self._working + size <= self.total)
            self._working += size
        try:
            yield
        finally:
            with self._changed:
                self._working -= size
                self._changed.notify_all()

    def hold(self, size: int) -> None:
        """Reserve bytes until they are released by a call with a negative size."""
        with self._changed:
            self._held += size
            self._changed.notify_all()

    def keep(self, size: int) -> bool:
        """Reserve the bytes of a file if they fit the files' share of the budget; return whether they do."""
        with self._changed:
            if self._kept + size > self.total // FILES:
                return False
            self._kept += size
            self._held += size
            return True

    def drop(self, size: int) -> None:
        """Release the bytes of a file."""
        with self._changed:
            self._kept -= size
            self._held -= size
            self._changed.notify_all()


def groups(photos: Sequence[T], free: int) -> tuple[list[list[T]], list[T]]:
    """Return groups of photos, in their order, that fit `free` bytes each; and the photos that do not fit alone.

    The groups depend only on sizes and order. There is one group if all photos fit together.
    """
    found: list[list[T]] = []
    refused: list[T] = []
    held = working = 0
    for photo in photos:
        own = photo.held
        if own + photo.working > free:
            refused.append(photo)
            continue
        if not found or held + own + max(working, photo.working) > free:
            found.append([])
            held = working = 0
        found[-1].append(photo)
        held, working = held + own, max(working, photo.working)
    return found, refused


def smallest(photos: Sequence[T], total: int) -> list[T]:
    """Return the smallest clean photos that fit their share of the budget, in the given order."""
    left, kept = total // CLEAN, []
    for i in sorted(range(len(photos)), key=lambda i: (photos[i].pixels, i)):
        left -= CLEAN_BYTES * photos[i].pixels
        if left < 0:
            break
        kept.append(i)
    return [photos[i] for i in sorted(kept)]
