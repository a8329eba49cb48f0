"""Decoder processes that go on from one output to the next: a start takes longer than all photos of a small output."""

import atexit
import contextlib
from collections.abc import Iterator
from unittest import mock

from pipeline.run import reading
from pipeline.sources.decoders import Decoders, Limits, _Decoder

SHELF: list[_Decoder] = []
"""Idle decoders of this process."""


class KeptDecoders(Decoders):
    """Real decoders, taken from the shelf and put back there."""

    def __init__(self, limits: Limits, count: int) -> None:
        super().__init__(limits, count)
        for _ in range(min(count, len(SHELF))):
            self._idle.get()
            self._idle.put(SHELF.pop())

    def end(self) -> None:
        idle = [self._idle.get() for _ in range(self._count)]
        SHELF.extend(decoder for decoder in idle if decoder)
        for _ in idle:
            self._idle.put(None)


@contextlib.contextmanager
def kept_decoders() -> Iterator[None]:
    """Let workers of this process use kept decoders. Their limits of time, pixels and memory are those of the run."""
    with mock.patch.object(reading, "Decoders", KeptDecoders):
        yield


@atexit.register
def _end() -> None:
    for decoder in SHELF:
        decoder.end()
