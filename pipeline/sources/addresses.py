"""Addresses in an index file: what each names, and whether a run may read it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from dladiff.errors import StorageError
from pipeline.storage.base import Storage, bucket_fault
from pipeline.storage.keys import key_fault, short
from pipeline.storage.open import local_path, open_storage, read_uri

S3 = "s3://"
MAX_ADDRESS = 4096  # characters: the longest path of Linux; a key of S3 has 1024 bytes
OUTSIDE = "it is outside of the allowed folders; give --allow-root"


def address_of(uri: str, base: str) -> tuple[str, str | None]:
    """Return the absolute address that a row of an index in the folder `base` names, and why it is refused, if it is.

    A relative path belongs to `base`. A path and file:// give a path of this machine.
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
    """Return the folders of this machine below which an index may name photos, links followed.

    These are the folder of the index, unless it is in a bucket, and `allow_roots`: whoever writes an index could
    otherwise have any file of the machine read. Objects of buckets are guarded by the credentials of the run instead.
    """
    own = local_path(index)
    folders = [] if own is None else [own.parent]
    folders += [path for root in allow_roots if (path := local_path(root)) is not None]
    return tuple(dict.fromkeys(folder.expanduser().resolve() for folder in folders))


def root_faults(allow_roots: Sequence[str]) -> list[str]:
    """Return a line for each allowed root that is no folder of this machine."""
    there = ((root, local_path(root)) for root in allow_roots)
    return [
        f"allow_roots: {short(root)} is no folder here; give one that is there to --allow-root"
        for root, path in there
        if path is None or not path.expanduser().is_dir()
    ]


def place_of(path: str, roots: Sequence[Path]) -> tuple[Path, str] | None:
    """Return the root that holds a path, links followed, and the key below it; None where no root does."""
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
) -> bytes:
    """Return the bytes of a photo of an index; its path is checked again, since a link may have changed.

    The root is opened, not the photo's folder, so that its storage refuses a link that leaves it. Raises StorageError.
    """
    if uri.startswith(S3):
        return read_uri(uri, opened, opener, limit)
    place = place_of(uri, roots)
    if place is None:
        raise StorageError(f"refused {short(uri)}: {OUTSIDE}")
    root, key = str(place[0]), place[1]
    if root not in opened:
        opened[root] = opener(root)
    return opened[root].get(key, limit)
