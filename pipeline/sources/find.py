"""List photos and group them into identities, on the driver, in bounded memory, by names alone."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter

from dladiff.errors import BusyError, ConfigError, StorageError
from pipeline.sources.kinds import IN_SHARD, LOOK, SHARDS, ending_of, is_left_alone, is_photo_name, is_picture
from pipeline.sources.layouts import LAYOUTS
from pipeline.sources.layouts.record import Listing
from pipeline.sources.left_out import LeftOut
from pipeline.sources.shards import entry_of
from pipeline.sources.spool import Listed, Spool
from pipeline.storage.base import FOLDERS, Entry, Storage
from pipeline.storage.keys import shown

LOOKS = 16  # files looked at in parallel: each is one request of a bucket
LOOK_BATCH = 512  # entries held while they are looked at


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo of the input: key, URI, content tag, size in bytes."""

    key: str
    uri: str
    tag: str
    size: int
    faces: str = ""
    """JSON of the faces that an index gives (`pipeline.sources.given_faces`), "" for none."""


@dataclass(frozen=True)
class Identity:
    """One person: photos to protect, and clean photos (set_A), which the method trains on and never writes."""

    name: str
    photos: tuple[Photo, ...]
    clean: tuple[Photo, ...] = ()


def find_identities(
    storage: Storage,
    *,
    layout: str = "auto",
    exclude_prefix: str | None = None,
    lists: Storage | None = None,
    whole: bool = False,
    left: LeftOut | None = None,
) -> Iterator[Identity]:
    """List `storage` once and yield its identities, sorted by name, each with its photos sorted by key.

    `layout` names a record of `pipeline.sources.layouts`. `lists` holds a release's lists where they are not among the
    photos.
    Keys under `exclude_prefix` (an output inside the input), hidden files and files that are no pictures are no photos;
    `left` counts them. A folder or name that cannot be read is logged and counted there; with `whole` a folder raises
    StorageError, for a caller to whom an identity that is not listed has left.
    Memory holds one identity at a time. Raises ConfigError for an unknown layout, a bad list, and photos under
    `exclude_prefix` that no run put there; StorageError.
    """
    if layout not in LAYOUTS:
        raise ConfigError([f"layout: {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}"])
    left = left or LeftOut()
    return _find(storage, layout, _photos(storage, exclude_prefix, whole, left), lists, left)


def identities(rows: Iterable[Listed], uri_of: Callable[[str], str]) -> Iterator[Identity]:
    """Group rows sorted by name; identities without a photo to protect are skipped."""
    for name, group in itertools.groupby(rows, key=attrgetter("name")):
        photos: list[Photo] = []
        clean: list[Photo] = []
        for row in group:
            photo = Photo(row.key, uri_of(row.key) if row.uri is None else row.uri, row.tag, row.size)
            (clean if row.mark == "A" else photos).append(photo)
        if photos:
            yield Identity(name, tuple(photos), tuple(clean))


def photos_of(storage: Storage, entries: Iterable[Entry], left: LeftOut) -> Iterator[Entry]:
    """Yield the photos among entries, in any order; count the others in `left`.

    Extensions decide where they are known. The first bytes of other files are read, LOOKS files at a time. A file
    whose bytes cannot be read is a photo: the reason is given where it is read.
    """
    unknown: list[Entry] = []
    for entry in entries:
        if is_left_alone(entry.key):
            left.hidden += 1
        elif IN_SHARD.search(entry.key):
            left.skip(entry.key, "its name is the address of a row or a member; rename it")
        elif (known := is_photo_name(entry.key)) is None:
            unknown.append(entry)
            if len(unknown) == LOOK_BATCH:
                yield from _looked_at(storage, unknown, left)
                unknown = []
        elif known:
            yield entry
        elif ending_of(entry.key) in SHARDS:
            left.shards.append(entry)
        else:
            left.not_photo(entry.key)
    yield from _looked_at(storage, unknown, left)


def _looked_at(storage: Storage, entries: list[Entry], left: LeftOut) -> Iterator[Entry]:
    def look(entry: Entry) -> bool:
        try:
            return entry.size > 0 and is_picture(storage.part(entry.key, 0, LOOK))
        except BusyError:  # temporary, and no fault of the file
            raise
        except StorageError:
            return True

    if entries:
        with ThreadPoolExecutor(min(LOOKS, len(entries))) as pool:
            for entry, picture in zip(entries, pool.map(look, entries), strict=True):
                if picture:
                    yield entry
                else:
                    left.no_picture(entry.key)


def shard_identities(storage: Storage, key: str, left: LeftOut) -> Iterator[Identity]:
    """Yield the identities of the photos in one Parquet or tar file. Raises like `find_identities`."""
    left.shards = [entry_of(storage, key)]
    return _find(storage, "webdataset" if key.lower().endswith(".tar") else "parquet", iter(()), None, left)


def _find(
    storage: Storage, layout: str, photos: Iterator[Entry], lists: Storage | None, left: LeftOut
) -> Iterator[Identity]:
    lists_of = [lists, storage] if lists else [storage]
    root = storage.uri.rstrip("/").rpartition("/")[2] or "all"
    with Spool() as spool:
        LAYOUTS[layout].group(Listing(spool, photos, root, storage, lists_of, left))
        for shard in left.shards:
            left.no_picture(shard.key)
        left.log_all(storage.uri)
        yield from identities(spool.rows(), storage.uri_of)


def _photos(storage: Storage, exclude_prefix: str | None, whole: bool, left: LeftOut) -> Iterator[Entry]:
    """Yield the photos."""
    skip = f"{exclude_prefix.strip('/')}/" if exclude_prefix and exclude_prefix.strip("/") else None

    def note(key: str, why: str) -> None:
        if not (skip and key.startswith(skip)):
            left.skip(key, why)

    def outside() -> Iterator[Entry]:
        for entry in storage.list(whole=whole, skip=note):
            if not (skip and entry.key.startswith(skip)):
                yield entry
            elif _is_stray(entry.key, skip):
                address = shown(storage.uri_of(entry.key))
                raise ConfigError([f"output: holds photos of the input ({address}); give another output"])

    yield from photos_of(storage, outside(), left)


def _is_stray(key: str, output: str) -> bool:
    """Return whether a key below the output is a photo that no run put there."""
    return bool(is_photo_name(key)) and not is_left_alone(key) and key.removeprefix(output).split("/")[0] not in FOLDERS
