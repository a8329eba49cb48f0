"""Originals of an output's photos: read only below the input, whatever address a record or manifest names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dladiff.errors import NotFoundError, StorageError
from pipeline.records.latest import latest_plan
from pipeline.sources.find import is_photo
from pipeline.sources.index_file import is_index
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown
from pipeline.storage.open import local_path, open_storage

MOST_PHOTO = 200_000_000  # bytes of one original: a photo of 50 megapixels takes 150 MB without compression
MOST_PIXEL = 5  # bytes of a protected photo per pixel: three or four channels, which noise leaves as large as they are
MOST_REST = 2**24  # bytes of a protected photo beside its pixels: its colour profile
GONE, OUTSIDE, CHANGED = "gone", "outside of the input", "changed since, or unreadable"

Opener = Callable[[str], Storage]


class OutsideError(StorageError):
    """An address is not below the input."""


@dataclass
class Originals:
    """Reads photos below its roots: folders or bucket prefixes. Not one byte is read anywhere else.

    Links that lead out of a local root are refused, as storage refuses them.
    """

    roots: Mapping[str, Storage] = field(default_factory=dict)
    """By the address that photos' own begin with."""
    note: str = ""
    """What the caller should know of where the roots come from."""

    def addresses(self) -> tuple[str, ...]:
        """Return the roots as `named` takes them, in any process."""
        return tuple(dict.fromkeys(storage.uri for storage in self.roots.values()))

    def inside(self, uri: str) -> bool:
        """Return whether an address is below a root."""
        return self._place(uri) is not None

    def read(self, uri: str, limit: int = MOST_PHOTO) -> bytes:
        """Return the bytes at a full address. Raises OutsideError, and StorageError like `Storage.get`."""
        storage, key = self._found(uri)
        return storage.get(key, limit)

    def photos(self, uri: str) -> list[tuple[str, str]]:
        """Return (address, tag) of the photos below a folder or prefix that is a root or below one, sorted."""
        storage, key = self._found(f"{uri.rstrip('/')}/")
        return sorted((storage.uri_of(entry.key), entry.tag) for entry in storage.list(key) if is_photo(entry.key))

    def _found(self, uri: str) -> tuple[Storage, str]:
        place = self._place(uri)
        if place is None:
            raise OutsideError(f"{shown(uri)} is outside of the input; --input names it")
        return place

    def _place(self, uri: str) -> tuple[Storage, str] | None:
        for root, storage in self.roots.items():
            if uri.startswith(root):
                return storage, uri[len(root) :]
        return None


def named(inputs: Sequence[str], opener: Opener = open_storage) -> Originals:
    """Return what reads below inputs that the operator names. Raises StorageError where one is not there."""
    roots: dict[str, Storage] = {}
    for uri in inputs:
        folder = uri.removesuffix(uri.rpartition("/")[2]) or "." if is_index(uri) else uri
        storage, path = opener(folder), local_path(folder)
        roots[_prefix(storage.uri)] = storage
        if path is not None:  # an index file may name photos by the links on the way to them
            roots[_prefix(str(path.expanduser().absolute()))] = storage
    return Originals(roots)


def originals(output: Storage, inputs: Sequence[str] = ()) -> Originals:
    """Return what reads the originals of an output's photos: below `inputs`, else below the input that it records.

    Who may write the output can put another input there, so `note` says which one is meant. Raises StorageError where
    one of `inputs` is not there.
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
    """Return in a few words why an original was not read."""
    if isinstance(error, OutsideError):
        return OUTSIDE
    return GONE if isinstance(error, NotFoundError) else CHANGED


def stored_limit(row: Mapping[str, Any]) -> int:
    """Return how many bytes the protected photo of a row may have: PNG does not make pixels larger."""
    return int(row["width"]) * int(row["height"]) * MOST_PIXEL + MOST_REST


def _prefix(uri: str) -> str:
    return f"{uri.rstrip('/')}/"
