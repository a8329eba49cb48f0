"""The bytes that one task may hold at once: what stays in memory, what is in work, and which photos fit together."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.sources.decoder import FILE_BYTES, PIXEL_BYTES

HELD_BYTES = 7  # bytes a pixel for as long as a photo's group is worked on: RGB before, RGB after, alpha
CLEAN_BYTES = 3  # bytes a pixel of a clean photo: RGB
METHOD_BYTES = 190  # bytes a pixel of the one photo in the method's hands: measured with the tiny profile on the CPU
FILES = 8  # one part in so many of the budget holds files between their measure and their turn
CLEAN = 3  # one part in so many of the budget holds the clean photos

T = TypeVar("T", bound="Measured")


@dataclass(frozen=True, eq=False)
class Measured:
    """What a photo costs: its pixels, from its header, and the bytes of its file."""

    pixels: int
    size: int

    @property
    def decoding(self) -> int:
        """Bytes that decoding or encoding takes for a moment."""
        return PIXEL_BYTES * self.pixels + FILE_BYTES * self.size

    @property
    def working(self) -> int:
        """Bytes that any step takes for a moment."""
        return max(self.decoding, METHOD_BYTES * self.pixels)


class Budget:
    """Bytes that threads share. What is larger than all that can become free goes alone, rather than never."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._held = self._working = self._kept = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and take them for a while."""
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
        """Count bytes that stay until they are given back with a negative size."""
        with self._changed:
            self._held += size
            self._changed.notify_all()

    def keep(self, size: int) -> bool:
        """Count the bytes of a file that stays in memory, if the files' part of the budget has room for it."""
        with self._changed:
            if self._kept + size > self.total // FILES:
                return False
            self._kept += size
            self._held += size
            return True

    def drop(self, size: int) -> None:
        """Give back the bytes of a file."""
        with self._changed:
            self._kept -= size
            self._held -= size
            self._changed.notify_all()


def groups(photos: Sequence[T], free: int) -> tuple[list[list[T]], list[T]]:
    """Split photos, in their order, into groups that fit `free` bytes each; and those that do not fit alone.

    Only headers and order decide. One group holds all photos where they fit together.
    """
    found: list[list[T]] = []
    refused: list[T] = []
    held = working = 0
    for photo in photos:
        own = HELD_BYTES * photo.pixels
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
    """Return the clean photos that fit their part of the budget, the smallest first, in the order given."""
    left, kept = total // CLEAN, []
    for i in sorted(range(len(photos)), key=lambda i: (photos[i].pixels, i)):
        left -= CLEAN_BYTES * photos[i].pixels
        if left < 0:
            break
        kept.append(i)
    return [photos[i] for i in sorted(kept)]
