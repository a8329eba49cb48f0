"""Read the originals of an output's photos, only below the input, whatever address a record names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dladiff.errors import NotFoundError, StorageError
from pipeline.records.latest import latest_plan
from pipeline.sources import shards
from pipeline.sources.find import photos_of
from pipeline.sources.index_file import is_index
from pipeline.sources.left_out import LeftOut
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown
from pipeline.storage.open import local_path, open_storage

MAX_PHOTO = 200_000_000  # bytes of one original: a photo of 50 megapixels takes 150 MB without compression
MAX_PIXEL_BYTES = 5  # bytes of a protected photo per pixel: up to four channels, which PNG cannot compress if noisy
MAX_REST = 2**24  # bytes of a protected photo besides its pixels: its colour profile
GONE, OUTSIDE, CHANGED = "gone", "outside of the input", "changed since, or unreadable"

Opener = Callable[[str], Storage]


class OutsideError(StorageError):
    """An address is not below the input."""


@dataclass
class Originals:
    """Reads photos below its roots (folders or bucket prefixes) and nowhere else.

    The storage refuses links that lead out of a local root.
    """

    roots: Mapping[str, Storage] = field(default_factory=dict)
    """Storage by the prefix of its photos' addresses."""
    note: str = ""
    """Where the roots come from, for the operator."""

    def addresses(self) -> tuple[str, ...]:
        """Return the addresses of the roots; `named` opens them again in another process."""
        return tuple(dict.fromkeys(storage.uri for storage in self.roots.values()))

    def inside(self, uri: str) -> bool:
        """Return whether an address is below a root."""
        return self._split(uri) is not None

    def read(self, uri: str, limit: int = MAX_PHOTO) -> bytes:
        """Return the bytes at a full address. Raises OutsideError, and StorageError like `Storage.get`."""
        storage, key = self._found(uri)
        return shards.read(storage, key, limit)

    def photos(self, uri: str) -> list[tuple[str, str]]:
        """Return (address, tag) of the photos below a folder or prefix that is a root or below one, sorted."""
        storage, key = self._found(f"{uri.rstrip('/')}/")
        found = photos_of(storage, storage.list(key), LeftOut())
        return sorted((storage.uri_of(entry.key), entry.tag) for entry in found)

    def _found(self, uri: str) -> tuple[Storage, str]:
        found = self._split(uri)
        if found is None:
            raise OutsideError(f"{shown(uri)} is outside of the input; --input names it")
        return found

    def _split(self, uri: str) -> tuple[Storage, str] | None:
        for root, storage in self.roots.items():
            if uri.startswith(root):
                return storage, uri[len(root) :]
        return None


def named(inputs: Sequence[str], opener: Opener = open_storage) -> Originals:
    """Return the originals below inputs that the operator names. Raises StorageError if one does not exist."""
    roots: dict[str, Storage] = {}
    for uri in inputs:
        folder = uri.removesuffix(uri.rpartition("/")[2]) or "." if is_index(uri) else uri
        storage, path = opener(folder), local_path(folder)
        roots[_prefix(storage.uri)] = storage
        if path is not None:  # an index file may name photos by paths that contain links
            roots[_prefix(str(path.expanduser().absolute()))] = storage
    return Originals(roots)


def originals(output: Storage, inputs: Sequence[str] = ()) -> Originals:
    """Return the originals of an output's photos: below `inputs`, else below the input that the output records.

    Anyone who can write the output can forge the recorded input, so `note` names it. Raises StorageError if one of
    `inputs` does not exist.
    """
    if inputs:
        return named(inputs)
    latest = latest_plan(output)
    recorded = latest.inputs if latest else ()
    if not recorded:
        return Originals(note="the output does not say what its input was: no original is read; --input URI names it")
    names = ", ".join(shown(uri) for uri in recorded)
    try:
        found = named(recorded)
    except StorageError as error:
        return Originals(note=f"no original is read below {names}, the input that the output records: {error}")
    found.note = f"originals are read below {names}, as the output records it; --input URI names the input yourself"
    return found


def why(error: StorageError) -> str:
    """Return why an original was not read: OUTSIDE, GONE or CHANGED."""
    if isinstance(error, OutsideError):
        return OUTSIDE
    return GONE if isinstance(error, NotFoundError) else CHANGED


def stored_limit(row: Mapping[str, Any]) -> int:
    """Return the most bytes that the protected photo of a row may have, from its width and height."""
    return int(row["width"]) * int(row["height"]) * MAX_PIXEL_BYTES + MAX_REST


def _prefix(uri: str) -> str:
    return f"{uri.rstrip('/')}/"
