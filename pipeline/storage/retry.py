"""Storage with retries while the back end is overloaded or unreachable."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from dladiff.errors import BusyError
from pipeline.storage.base import Entry, Leftover, Skip, Storage

log = logging.getLogger(__name__)

FIRST_S, LONGEST_S = 1.0, 30.0  # seconds between tries: doubled each time, up to the longest
T = TypeVar("T")


class PatientStorage:
    """A Storage that repeats operations on BusyError until `patience_s` seconds have passed.

    A short outage then delays an identity and loses no work. Other errors are raised at once. Repeating is safe: a
    put writes the same bytes, and after a conditional put that succeeded unnoticed the caller finds its own record.
    """

    def __init__(self, inner: Storage, patience_s: float, retried: Callable[[], None] = lambda: None) -> None:
        self.inner = inner
        self.patience_s = patience_s
        self.retried = retried

    @property
    def uri(self) -> str:
        """The prefix, in the form that `open_storage` accepts."""
        return self.inner.uri

    def uri_of(self, key: str) -> str:
        """Return the full address of an object."""
        return self.inner.uri_of(key)

    def list(
        self, prefix: str = "", *, log_skipped: bool = True, whole: bool = True, skip: Skip | None = None
    ) -> Iterator[Entry]:
        """Yield the objects whose key begins with `prefix`; the listing is read whole before the first is yielded."""
        yield from self._try(lambda: [*self.inner.list(prefix, log_skipped=log_skipped, whole=whole, skip=skip)])

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the bytes of an object, at most `limit` of them."""
        return self._try(lambda: self.inner.get(key, limit))

    def part(self, key: str, start: int, length: int) -> bytes:
        """Return at most `length` bytes of an object from byte `start` on."""
        return self._try(lambda: self.inner.part(key, start, length))

    def get_file(self, key: str, file: Path) -> None:
        """Write the bytes of an object to a local file."""
        self._try(lambda: self.inner.get_file(key, file))

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Write an object atomically."""
        self._try(lambda: self.inner.put(key, data, content_type))

    def put_file(self, key: str, file: Path) -> None:
        """Write an object from a local file."""
        self._try(lambda: self.inner.put_file(key, file))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists."""
        return self._try(lambda: self.inner.put_if_absent(key, data))

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """Replace an object if its tag is still `tag`."""
        return self._try(lambda: self.inner.put_if_match(key, data, tag))

    def tag(self, key: str) -> str | None:
        """Return the tag of an object, None when it is missing."""
        return self._try(lambda: self.inner.tag(key))

    def age(self, key: str) -> float | None:
        """Return the seconds since an object was written."""
        return self._try(lambda: self.inner.age(key))

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""
        self._try(lambda: self.inner.delete(key))

    def unfinished(self, prefix: str = "") -> Iterator[Leftover]:
        """Yield the unfinished writes; the listing is read whole before the first is yielded."""
        yield from self._try(lambda: [*self.inner.unfinished(prefix)])

    def discard(self, left: Leftover) -> None:
        """Remove a leftover of `unfinished`."""
        self._try(lambda: self.inner.discard(left))

    def _try(self, call: Callable[[], T]) -> T:
        deadline, wait = time.monotonic() + self.patience_s, FIRST_S
        while True:
            try:
                return call()
            except BusyError as error:
                if time.monotonic() + wait > deadline:
                    raise
                log.warning("%s; trying again in %.0f s", error, wait)
            self.retried()
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_S)
