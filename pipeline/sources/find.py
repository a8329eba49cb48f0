"""List photos and group them into identities, on the driver, in bounded memory, by names alone."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import PurePosixPath

from dladiff.errors import ConfigError
from pipeline.sources import layouts, released
from pipeline.sources.spool import Listed, Spool
from pipeline.storage.base import FOLDERS, Entry, Storage
from pipeline.storage.keys import shown

log = logging.getLogger(__name__)

PICTURES = frozenset(
    ".avif .heif .jp2 .j2k .jxl .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .psd .tga .ppm .pgm .pnm .exr .ico .svg".split()
) | {""}
"""Extensions of pictures that are skipped with a warning; "" is no extension."""
KINDS = 8  # most extensions named in that warning
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic"})


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo of the input: key, URI, content tag, size in bytes."""

    key: str
    uri: str
    tag: str
    size: int


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
) -> Iterator[Identity]:
    """List `storage` once and yield its identities, sorted by name, each with its photos sorted by key.

    folders: a folder is an identity ("a/b" when nested). flat: a photo is an identity, named by its stem, with the
    extension only where stems collide. one: everything is one identity, named as the input folder. sets:
    <id>/set_A/* or <id>/set_A_* is clean, set_B is protected, set_C ignored. vggface2: the nNNNNNN folder is the
    identity, at any depth. celeba_hq: the release's lists give the person on photo <index>. auto: CelebA-HQ if its
    lists are at the top, sets for identities with A and B, VGGFace2 if all folders have its names, else folders,
    and flat for photos at the top. `lists` holds the release's lists if they are not among the photos.
    Keys under `exclude_prefix` (an output inside the input), hidden files and other extensions are skipped.
    Unreadable folders are logged, counted and skipped; with `whole` they raise StorageError. Callers that treat an
    unlisted identity as gone need `whole`.
    Memory holds one identity at a time. Raises ConfigError for an unknown layout, a bad list, and photos under
    `exclude_prefix` that no run put there; StorageError.
    """
    if layout not in layouts.LAYOUTS:
        raise ConfigError([f"layout: {layout!r} is unknown; choose one of {', '.join(layouts.LAYOUTS)}"])
    return _find(storage, layout, _photos(storage, exclude_prefix, whole), lists)


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


def is_photo(key: str) -> bool:
    """Return whether a key names a photo: a known extension, and no hidden part such as ".thumbs" or "._a.jpg"."""
    return not _hidden(key) and PurePosixPath(key).suffix.lower() in EXTENSIONS


def _hidden(key: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in key.split("/"))


def _find(storage: Storage, layout: str, photos: Iterator[Entry], lists: Storage | None) -> Iterator[Identity]:
    storages = [lists, storage] if lists else [storage]
    root = storage.uri.rstrip("/").rpartition("/")[2] or "all"
    with Spool() as spool:
        if layout == "celeba_hq" or (layout == "auto" and released.has_celeba_hq(storage)):
            released.celeba_hq(spool, photos, storages)
        elif layout == "vggface2":
            released.vggface2(spool, photos, storages)
        elif layout == "one":
            layouts.one(spool, photos, root)
        elif layout == "flat":
            layouts.flat(spool, photos)
        elif layout == "folders":
            layouts.folders(spool, photos)
        elif layout == "sets":
            layouts.sets(spool, photos, root)
        else:
            layouts.auto(spool, photos, root)
            if released.is_vggface2(spool):
                released.settle_vggface2(spool, storages)
        yield from identities(spool.rows(), storage.uri_of)


def _photos(storage: Storage, exclude_prefix: str | None, whole: bool) -> Iterator[Entry]:
    """Yield the photos; log at the end how many visible pictures of unsupported types were skipped."""
    skip = f"{exclude_prefix.strip('/')}/" if exclude_prefix and exclude_prefix.strip("/") else None
    others: Counter[str] = Counter()
    for entry in storage.list(whole=whole):
        if skip and entry.key.startswith(skip):
            if is_photo(entry.key) and entry.key.removeprefix(skip).partition("/")[0] not in FOLDERS:
                address = shown(storage.uri_of(entry.key))
                raise ConfigError([f"output: holds photos of the input ({address}); give another output"])
            continue
        if is_photo(entry.key):
            yield entry
        elif not _hidden(entry.key) and (kind := PurePosixPath(entry.key).suffix.lower()) in PICTURES:
            others[kind or "no extension"] += 1
    if others:
        kinds = ", ".join(f"{shown(kind)} {count}" for kind, count in others.most_common(KINDS))
        log.error("left out %d files that are not read as photos: %s; convert them", others.total(), kinds)
