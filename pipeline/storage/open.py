"""Open a storage by its address: a folder or s3://bucket/prefix."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote

from dladiff.errors import StorageError
from pipeline.storage.base import Storage, bucket_fault
from pipeline.storage.keys import shown
from pipeline.storage.local import LocalStorage

SCHEMES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "file", "http", "https"})
MISTYPED = re.compile(rf"(?:{'|'.join(sorted(SCHEMES))})(?::|//)", re.IGNORECASE)
"""The beginning of an address; without "://" it would be read as the name of a folder."""


def open_storage(uri: str | Path, *, create: bool = False, s3: Mapping[str, str] | None = None) -> Storage:
    """Open a folder (a path or file:// URI) or an s3://bucket/prefix.

    With `create` a missing folder is created; buckets never are. S3 is not contacted before the first operation. `s3`
    holds the options of S3_OPTIONS and is ignored for a folder.
    Raises StorageError: no such folder, not a folder, or an unknown scheme.
    """
    path = local_path(uri)
    if path is None:
        from pipeline.storage.s3 import S3Storage  # boto3 imports slowly, and local runs do not need it

        return S3Storage(str(uri), s3)
    return LocalStorage(path, create=create)


def local_path(uri: str | Path) -> Path | None:
    """Return the path of a folder or file (a path or file:// URI), None for s3://. Raises StorageError as above."""
    text = str(uri)
    scheme, separator, path = text.partition("://")
    if not text:
        raise StorageError("the address is empty; use a folder or s3://bucket/prefix")
    if MISTYPED.match(text) and (not separator or scheme.lower() in SCHEMES - {scheme}):
        raise StorageError(
            f"{shown(text)} looks like a mistyped address; use s3://bucket/prefix, or ./ before a folder"
        )
    if not separator or text.startswith("/"):
        return Path(text)
    if scheme == "file" and path.removeprefix("localhost").startswith("/"):
        return Path(unquote(path.removeprefix("localhost")))
    if scheme == "file":
        raise StorageError(f"a file URI names another host: {shown(text)}; use file:///folder")
    if scheme != "s3":
        raise StorageError(f"unknown storage {shown(text)}; use a folder or s3://bucket/prefix")
    return None


def address_fault(uri: str) -> str | None:
    """Return what is wrong with an address, or None; the storage is not contacted."""
    try:
        is_folder = local_path(uri) is not None
    except StorageError as error:
        return str(error)
    return None if is_folder else bucket_fault(uri)


def read_uri(
    uri: str, opened: dict[str, Storage], opener: Callable[[str], Storage] | None = None, limit: int | None = None
) -> bytes:
    """Return the bytes at a full address, at most `limit`; `opened` caches open buckets and folders.

    Raises StorageError like `get`.
    """
    if uri.startswith("s3://"):
        bucket, _, name = uri.removeprefix("s3://").partition("/")
        root = f"s3://{bucket}"
    else:
        root, _, name = uri.rpartition("/")
    if root not in opened:
        opened[root] = (opener or open_storage)(root or "/")
    return opened[root].get(name, limit)
