"""Storage: list, get, put, put-if-absent and compare-and-swap, on a local folder or on S3, behind one Protocol."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from dladiff.errors import RefusedError, StorageError, TooLargeError
from pipeline.names import key_fault, shown

S3_OPTIONS = {
    "server_side_encryption": "ServerSideEncryption",
    "kms_key_id": "SSEKMSKeyId",
    "storage_class": "StorageClass",
}
"""Names of the configuration to names of the request."""
FOLDERS = ("photos", "done", "failed", "starts", "plan", "manifest", "report", "traces")  # what a run's output holds
MAX_OBJECT = 2 * 2**30  # bytes of one object held in memory: the largest is the manifest of millions of photos
TEMP_PREFIX = ".tmp-"  # names that begin so are unfinished writes or locks, never objects


@dataclass(frozen=True)
class Entry:
    """One stored object: its key, its size in bytes, and a tag that changes whenever its content does."""

    key: str
    size: int
    tag: str


class Storage(Protocol):
    """Objects under one prefix. Every method raises StorageError, one line that says what to do.

    Keys are relative POSIX paths; an absolute key, "..", a NUL or a backslash is refused.
    """

    @property
    def uri(self) -> str:
        """The prefix as `open_storage` takes it."""
        ...

    def list(self, prefix: str = "", *, tell: bool = True) -> Iterator[Entry]:
        """Yield the objects whose key begins with `prefix`, in the order the back end lists them, none held back.

        What no key can name is skipped, and logged if `tell`.
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


def open_storage(uri: str | Path, *, create: bool = False, s3: Mapping[str, str] | None = None) -> Storage:
    """Open a folder (a path or file:// URI) or an s3://bucket/prefix.

    With `create` a missing folder is made; buckets never are. S3 is not contacted before the first operation; `s3`
    says how objects are kept there (S3_OPTIONS), and means nothing for a folder.
    Raises StorageError: no such folder, not a folder, or an unknown scheme.
    """
    path = local_path(uri)
    if path is None:
        from pipeline.s3_storage import S3Storage  # boto3 takes long to import; a local run does without

        return S3Storage(str(uri), s3)
    from pipeline.local_storage import LocalStorage  # here, since it imports Entry from this module

    return LocalStorage(path, create=create)


def local_path(uri: str | Path) -> Path | None:
    """Return the path of a folder or file (a path or file:// URI), None for s3://. Raises StorageError as above."""
    text = str(uri)
    scheme, there, place = text.partition("://")
    if not text:
        raise StorageError("the address is empty; use a folder or s3://bucket/prefix")
    if not there or text.startswith("/"):
        return Path(text)
    if scheme == "file" and place.removeprefix("localhost").startswith("/"):
        return Path(unquote(place.removeprefix("localhost")))
    if scheme == "file":
        raise StorageError(f"a file URI names another host: {shown(text)}; use file:///folder")
    if scheme != "s3":
        raise StorageError(f"unknown storage {shown(text)}; use a folder or s3://bucket/prefix")
    return None


def address_fault(uri: str) -> str | None:
    """Return what is wrong with an address itself, wherever it leads."""
    try:
        named = local_path(uri) is not None or urlsplit(uri).netloc
    except StorageError as error:
        return str(error)
    return None if named else f"{shown(uri)} names no bucket; use s3://bucket/prefix"


def read_uri(
    uri: str, opened: dict[str, Storage], opener: Callable[[str], Storage] | None = None, limit: int | None = None
) -> bytes:
    """Return the bytes at a full address; `opened` keeps the storages (buckets, folders) opened before.

    Raises StorageError like `get`.
    """
    split = urlsplit(uri)
    bucket = f"s3://{split.netloc}"
    place, name = (bucket, uri[len(bucket) + 1 :]) if uri.startswith("s3://") else uri.rpartition("/")[::2]
    if place not in opened:
        opened[place] = (opener or open_storage)(place or "/")
    return opened[place].get(name, limit)


def too_large(where: str, limit: int) -> TooLargeError:
    """Return the error for an object that has more bytes than `limit`."""
    return TooLargeError(f"{shown(where)} has more than {limit} bytes; make it smaller or raise the limit")


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
