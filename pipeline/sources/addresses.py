"""Addresses in an index file: resolve them, and check whether a run may read them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from dladiff.errors import StorageError
from pipeline.sources import shards
from pipeline.storage.base import Storage, bucket_fault
from pipeline.storage.keys import key_fault, short
from pipeline.storage.open import local_path, open_storage, read_uri

S3 = "s3://"
MAX_ADDRESS = 4096  # characters: the longest Linux path; S3 keys have at most 1024 bytes
OUTSIDE = "it is outside of the allowed folders; give --allow-root"


def address_of(uri: str, base: str) -> tuple[str, str | None]:
    """Return the absolute address of a row's `uri`, and why it is refused or None.

    Relative paths are relative to `base`, the index's folder. Paths and file:// give a path on this machine.
    """
    if len(uri) > MAX_ADDRESS:
        return uri, f"it has more than {MAX_ADDRESS} characters"
    if uri.startswith(S3):
        return uri, bucket_fault(uri) or key_fault(uri.removeprefix(S3).partition("/")[2])
    if uri.startswith("file://"):
        host, slash, path = uri.removeprefix("file://").partition("/")
        if host not in ("", "localhost"):
            return uri, "it names another host"
        uri = unquote(slash + path, errors="surrogateescape")
    elif "://" in uri and not uri.startswith("/"):
        return uri, "its scheme is unknown; use a path, file:// or s3://"
    if uri.startswith("/"):
        return uri, key_fault(uri[1:])
    relative = uri.removeprefix("./")
    return f"{base.rstrip('/')}/{relative}", key_fault(relative)


def roots_of(index: str, allow_roots: Sequence[str]) -> tuple[Path, ...]:
    """Return the local folders below which an index may name photos, with links resolved.

    These are the folder of a local index, and `allow_roots`. Without this limit the writer of an index could make a run
    read any file of the machine. For bucket objects the credentials of the run are the limit.
    """
    own = local_path(index)
    folders = [] if own is None else [own.parent]
    folders += [path for root in allow_roots if (path := local_path(root)) is not None]
    return tuple(dict.fromkeys(folder.expanduser().resolve() for folder in folders))


def root_faults(allow_roots: Sequence[str]) -> list[str]:
    """Return a line for each allowed root that is no folder on this machine."""
    paths = ((root, local_path(root)) for root in allow_roots)
    return [
        f"allow_roots: {short(root)} is no folder here; give an existing folder to --allow-root"
        for root, path in paths
        if path is None or not path.expanduser().is_dir()
    ]


def root_and_key(path: str, roots: Sequence[Path]) -> tuple[Path, str] | None:
    """Return the root that contains a path, and the key below it, with links resolved; None if no root contains it."""
    try:
        real = Path(path).resolve()
    except (RuntimeError, OSError):  # a link to itself
        return None
    for root in roots:
        if real.is_relative_to(root):
            return root, "" if real == root else real.relative_to(root).as_posix()
    return None


def read_allowed(
    uri: str,
    roots: Sequence[Path],
    opened: dict[str, Storage],
    opener: Callable[[str], Storage] = open_storage,
    limit: int | None = None,
    tag: str | None = None,
) -> bytes:
    """Return the bytes of an index's photo, at most `limit`; `tag` is that of a row or member in the plan.

    The path is checked again, since links may have changed.
    The root is opened, not the photo's folder: its storage refuses links out of the root. Raises StorageError.
    """
    if uri.startswith(S3):
        if tag is None:
            return read_uri(uri, opened, opener, limit)
        bucket, _, key = uri.removeprefix(S3).partition("/")
        if S3 + bucket not in opened:
            opened[S3 + bucket] = opener(S3 + bucket)
        return shards.read(opened[S3 + bucket], key, limit, tag)
    found = root_and_key(uri, roots)
    if found is None:
        raise StorageError(f"refused {short(uri)}: {OUTSIDE}")
    root, key = str(found[0]), found[1]
    if root not in opened:
        opened[root] = opener(root)
    return shards.read(opened[root], key, limit, tag) if tag else opened[root].get(key, limit)
