"""Storage: list, get, put, put-if-absent and compare-and-swap, on a local folder or on S3, behind one Protocol."""

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dladiff.errors import RefusedError, StorageError, TooLargeError
from pipeline.storage.keys import key_fault, short, shown

log = logging.getLogger(__name__)

S3_OPTIONS = {
    "server_side_encryption": "ServerSideEncryption",
    "kms_key_id": "SSEKMSKeyId",
    "storage_class": "StorageClass",
}
"""Setting name to the name of its parameter in an S3 request."""
FOLDERS = ("photos", "done", "failed", "starts", "plan", "manifest", "report", "traces", "pages")
"""Top folders of a run's output."""
MAX_OBJECT = 2 * 2**30  # bytes of one object held in memory: the largest is the manifest of millions of photos
SKIPPED_SHOWN = 20  # log lines about skipped objects for one listing, about a screen
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # what boto3 accepts; access keys and passwords do not match
Skip = Callable[[str, str], None]
"""Receives the key of an object that a listing skips, and why; a folder's key ends in "/"."""
TEMP_PREFIX = ".tmp-"  # prefix of unfinished writes and locks, which are never objects


@dataclass(frozen=True)
class Entry:
    """One stored object: its key, its size in bytes, and a tag that changes whenever its content does."""

    key: str
    size: int
    tag: str


@dataclass(frozen=True)
class Leftover:
    """What a dead writer left: a hidden file, a multipart upload, or an empty folder (its key ends in "/")."""

    key: str
    age: float
    """Seconds since the write began, by the storage's own clock; infinite when no writer can still need it."""
    upload: str = ""
    """Id of an incomplete multipart upload."""


class Storage(Protocol):
    """Objects under one prefix. Every method may raise StorageError with one line that says what to do.

    Keys are relative POSIX paths; an absolute key, "..", a NUL or a backslash is refused.
    """

    @property
    def uri(self) -> str:
        """The prefix, in the form that `open_storage` accepts."""
        ...

    def list(
        self, prefix: str = "", *, log_skipped: bool = True, whole: bool = True, skip: Skip | None = None
    ) -> Iterator[Entry]:
        """Yield the objects whose key begins with `prefix`, in the back end's order, as they arrive.

        Objects whose name is no valid key are skipped, and logged with `log_skipped`, or given to `skip`. With
        `whole`, an unreadable folder raises StorageError: its records or people would seem deleted. Without it,
        unreadable folders below the first one are skipped.
        """
        ...

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the bytes of an object.

        Reads at most `limit` bytes (None: MAX_OBJECT) and raises TooLargeError for a larger object, NotFoundError for
        a missing one.
        """
        ...

    def part(self, key: str, start: int, length: int) -> bytes:
        """Return at most `length` bytes of an object from byte `start` on, which it must have. Errors like `get`."""
        ...

    def get_file(self, key: str, file: Path) -> None:
        """Write an object of any size to a local file; after an error the file may be incomplete."""
        ...

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Write an object atomically."""
        ...

    def put_file(self, key: str, file: Path) -> None:
        """Write an object atomically from a local file of any size."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists. Of several concurrent writers exactly one gets True."""
        ...

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """Replace an object if its tag is still `tag`. Return False when it was changed or deleted."""
        ...

    def tag(self, key: str) -> str | None:
        """Return the tag of an object, None when it is missing."""
        ...

    def age(self, key: str) -> float | None:
        """Return the seconds since an object was written, by the storage's own clock; None when it is missing."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""
        ...

    def uri_of(self, key: str) -> str:
        """Return the full address of an object."""
        ...

    def unfinished(self, prefix: str = "") -> Iterator[Leftover]:
        """Yield the unfinished writes below a prefix, which `list` does not show."""
        ...

    def discard(self, left: Leftover) -> None:
        """Remove a leftover of `unfinished`; a missing one is no error."""
        ...


class Skipped:
    """Objects that one listing skips: the first SKIPPED_SHOWN are logged by name, all are counted.

    They are logged as errors, which --quiet shows too: a skipped photo stays unprotected.
    """

    def __init__(self, where: str, log_skipped: bool, skip: Skip | None = None) -> None:
        self.where, self.log_skipped, self.skip = where, log_skipped and skip is None, skip
        self.count = 0

    def add(self, key: str, why: str) -> None:
        """Count one skipped object, and log it if it is among the first."""
        self.count += 1
        if self.skip is not None:
            self.skip(key, why)
        if self.log_skipped and self.count <= SKIPPED_SHOWN:
            log.error("skipped %s: %s", short(key), why)

    def end(self) -> None:
        """Log how many more were skipped."""
        if self.log_skipped and self.count > SKIPPED_SHOWN:
            log.error("skipped %d more in %s, %d in all", self.count - SKIPPED_SHOWN, shown(self.where), self.count)


def bucket_fault(uri: str) -> str | None:
    """Return why an address is no valid s3://bucket/prefix, or None. Credentials in it are a fault, never shown."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if not bucket:
        return f"{short(uri)} names no bucket; use s3://bucket/prefix"
    if "@" in bucket or (":" in bucket and "@" in uri):  # a secret key may hold a slash
        return f"{short(uri)} holds credentials; use s3://bucket/prefix and set AWS_ACCESS_KEY_ID or AWS_PROFILE"
    return None if BUCKET.fullmatch(bucket) else f"{short(uri)} names no valid bucket; use s3://bucket/prefix"


def too_large(where: str, limit: int) -> TooLargeError:
    """Return the error for an object of more than `limit` bytes."""
    return TooLargeError(f"{shown(where)} has more than {limit} bytes; make it smaller or raise the limit")


def check_free_space(file: Path, size: int) -> None:
    """Raise StorageError when the disk of `file` has fewer than `size` bytes free."""
    try:
        free = shutil.disk_usage(file.parent).free
    except OSError as error:
        raise StorageError(f"cannot write {shown(str(file))}: {error.strerror}; check the disk") from error
    if size > free:
        raise StorageError(f"disk full: {shown(str(file))} needs {size} bytes, {free} are free; free some space")


def check_key(key: str) -> str:
    """Return `key`. Raises RefusedError unless it is a relative POSIX path that stays under the prefix."""
    fault = key_fault(key)
    if fault:
        raise RefusedError(f"refused key {shown(key)!r}: {fault}; use a relative path")
    return key


def check_prefix(prefix: str) -> str:
    """Return a listing prefix; it may be empty or end with "/". Raises RefusedError like `check_key`."""
    bare = prefix.removesuffix("/")
    if prefix:
        check_key(bare)
    return prefix


def is_temporary(key: str) -> bool:
    """Return whether a part of the key begins with TEMP_PREFIX."""
    return any(part.startswith(TEMP_PREFIX) for part in key.split("/"))
