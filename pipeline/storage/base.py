"""Storage: list, get, put, put-if-absent and compare-and-swap, on a local folder or on S3, behind one Protocol."""

import logging
import re
import shutil
from collections.abc import Iterator
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
"""Names of the configuration to names of the request."""
FOLDERS = ("photos", "done", "failed", "starts", "plan", "manifest", "report", "traces", "pages")
"""What a run's output holds."""
MAX_OBJECT = 2 * 2**30  # bytes of one object held in memory: the largest is the manifest of millions of photos
SKIPPED_SHOWN = 20  # lines about objects that one listing skips, about a screen; the others are counted
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # what boto3 accepts; a key or a password is none
TEMP_PREFIX = ".tmp-"  # names that begin so are unfinished writes or locks, never objects


@dataclass(frozen=True)
class Entry:
    """One stored object: its key, its size in bytes, and a tag that changes whenever its content does."""

    key: str
    size: int
    tag: str


@dataclass(frozen=True)
class Leftover:
    """What a writer that died left: a hidden file, an upload in parts, or an empty folder, whose key ends in "/"."""

    key: str
    age: float
    """Seconds since it was begun, by the storage's own clock; infinite where no writer can need it."""
    upload: str = ""
    """Id of an upload in parts that was not completed."""


class Storage(Protocol):
    """Objects under one prefix. Every method raises StorageError, one line that says what to do.

    Keys are relative POSIX paths; an absolute key, "..", a NUL or a backslash is refused.
    """

    @property
    def uri(self) -> str:
        """The prefix as `open_storage` takes it."""
        ...

    def list(self, prefix: str = "", *, tell: bool = True, whole: bool = True) -> Iterator[Entry]:
        """Yield the objects whose key begins with `prefix`, in the order the back end lists them, none held back.

        An object that no key can name is skipped, and logged if `tell`. A folder that cannot be read, other than the
        first, raises StorageError if `whole`, since records or people would seem to be gone; else it is skipped too.
        """
        ...

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the bytes of an object.

        Reads at most `limit` bytes (None: MAX_OBJECT) and raises TooLargeError for a larger object, NotFoundError for
        a missing one.
        """
        ...

    def get_file(self, key: str, file: Path) -> None:
        """Write the bytes of an object of any size to a local file, which an error leaves unfinished."""
        ...

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Write an object whole, or not at all."""
        ...

    def put_file(self, key: str, file: Path) -> None:
        """Write an object from a local file of any size, whole or not at all."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; of any number of writers at once exactly one gets True."""
        ...

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """Replace an object if its tag is still `tag`; False when it changed or is gone."""
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
        """Yield what writers left below a prefix and `list` does not show."""
        ...

    def discard(self, left: Leftover) -> None:
        """Remove what `unfinished` yielded; a missing one is no error."""
        ...


class Skipped:
    """Objects that one listing leaves out: the first are logged by name, all are counted.

    Each is an error, which a quiet run shows too: a photo may stay unprotected.
    """

    def __init__(self, where: str, tell: bool) -> None:
        self.where, self.tell = where, tell
        self.count = 0

    def add(self, key: str, why: str) -> None:
        """Skip one object."""
        self.count += 1
        if self.tell and self.count <= SKIPPED_SHOWN:
            log.error("skipped %s: %s", short(key), why)

    def end(self) -> None:
        """Say how many were not logged by name."""
        if self.tell and self.count > SKIPPED_SHOWN:
            log.error("skipped %d more in %s, %d in all", self.count - SKIPPED_SHOWN, shown(self.where), self.count)


def bucket_fault(uri: str) -> str | None:
    """Return why an address is refused as s3://bucket/prefix; credentials in it are a fault, and are not shown."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if not bucket:
        return f"{short(uri)} names no bucket; use s3://bucket/prefix"
    if "@" in bucket or (":" in bucket and "@" in uri):  # a secret key may hold a slash
        return f"{short(uri)} holds credentials; use s3://bucket/prefix and set AWS_ACCESS_KEY_ID or AWS_PROFILE"
    return None if BUCKET.fullmatch(bucket) else f"{short(uri)} names no valid bucket; use s3://bucket/prefix"


def too_large(where: str, limit: int) -> TooLargeError:
    """Return the error for an object that has more bytes than `limit`."""
    return TooLargeError(f"{shown(where)} has more than {limit} bytes; make it smaller or raise the limit")


def check_room(file: Path, size: int) -> None:
    """Raise StorageError where the disk has no room for `size` bytes at `file`: nothing is begun that cannot end."""
    try:
        free = shutil.disk_usage(file.parent).free
    except OSError as error:
        raise StorageError(f"cannot write {shown(str(file))}: {error.strerror}; check the disk") from error
    if size > free:
        raise StorageError(f"disk full: {shown(str(file))} needs {size} bytes, {free} are free; free some space")


def check_key(key: str) -> str:
    """Return `key`; StorageError when it is not a relative POSIX path that stays under the prefix."""
    fault = key_fault(key)
    if fault:
        raise RefusedError(f"refused key {shown(key)!r}: {fault}; use a relative path")
    return key


def check_prefix(prefix: str) -> str:
    """Return a listing prefix (it may be empty or end with "/"); StorageError like `check_key`."""
    bare = prefix.removesuffix("/")
    if prefix:
        check_key(bare)
    return prefix


def is_temporary(key: str) -> bool:
    """Return whether any part of the key marks an unfinished write."""
    return any(part.startswith(TEMP_PREFIX) for part in key.split("/"))
