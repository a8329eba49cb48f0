"""What a layout says of itself, and what it groups."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.sources.left_out import LeftOut
from pipeline.sources.spool import Spool
from pipeline.storage.base import Entry, Storage


@dataclass(frozen=True)
class Listing:
    """The photos of an input, and where they go."""

    spool: Spool
    """Receives one row a photo."""
    photos: Iterable[Entry]
    root: str
    """Name of the input's folder."""
    storage: Storage
    places: Sequence[Storage]
    """Where a released collection's own lists may be."""
    left: LeftOut = field(default_factory=LeftOut)
    """Counts what is no photo; its `shards` are complete after the last of `photos`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout."""

    name: str
    about: str
    group: Callable[[Listing], None]
    """Adds every photo to the spool under its identity's name. Raises ConfigError, StorageError."""
