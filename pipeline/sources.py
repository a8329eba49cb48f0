"""Photo layouts to identities: names are grouped on the driver, and no pixel is read."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from dladiff.errors import ConfigError
from pipeline.storage import Entry, Storage

log = logging.getLogger(__name__)

LAYOUTS = ("auto", "folders", "flat", "one", "sets")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic"})
SET_FOLDER = re.compile(r"set_([abc])", re.IGNORECASE)  # Anti-DreamBooth: <id>/set_A/1.jpg
SET_FILE = re.compile(r"set_([abc])_.+", re.IGNORECASE)  # the same in one folder: <id>/set_A_1.jpg


@dataclass(frozen=True)
class Photo:
    """One photo of the input: key and URI, the tag of its content, size in bytes."""

    key: str
    uri: str
    tag: str
    size: int


@dataclass(frozen=True)
class Identity:
    """One person: the photos to protect, and clean photos (set_A) the method may train on but never writes."""

    name: str
    photos: tuple[Photo, ...]
    clean: tuple[Photo, ...] = ()


@dataclass
class _Group:
    photos: list[Photo] = field(default_factory=list)
    clean: list[Photo] = field(default_factory=list)


def find_identities(storage: Storage, *, layout: str = "auto", exclude_prefix: str | None = None) -> list[Identity]:
    """List `storage` once and return its identities, sorted by name, each with its photos sorted by key.

    folders: a folder is an identity ("a/b" when nested). flat: a photo is an identity, named by its stem, with the
    extension only where stems collide. one: everything is one identity, named as the input folder. sets:
    <id>/set_A/* or <id>/set_A_* is clean, set_B is protected, set_C ignored. auto: sets where an identity has A and
    B, else folders, and flat for photos at the top. Keys under `exclude_prefix` (an output inside the input),
    hidden files and other extensions are no photos. Raises ConfigError for an unknown layout, StorageError.
    """
    if layout not in LAYOUTS:
        raise ConfigError([f"layout: {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}"])
    skip = f"{exclude_prefix.strip('/')}/" if exclude_prefix and exclude_prefix.strip("/") else None
    entries = [e for e in storage.list() if is_photo(e.key) and not (skip and e.key.startswith(skip))]
    photos = [_photo(storage, entry) for entry in entries]
    root = storage.uri.rstrip("/").rpartition("/")[2] or "all"
    if layout == "one":
        groups = {root: _Group(photos)}
    elif layout == "flat":
        groups = _flat(photos, taken=())
    elif layout == "folders":
        groups = _folders([p for p in photos if "/" in p.key])
        _warn(len(photos) - sum(len(g.photos) for g in groups.values()), "lie in no folder")
    else:
        groups = _auto(photos, root, only_sets=layout == "sets")
    return [
        Identity(name, tuple(group.photos), tuple(group.clean))
        for name, group in sorted(groups.items())
        if group.photos
    ]


def is_photo(key: str) -> bool:
    """Return whether a key names a photo: a known extension, and no hidden part such as ".thumbs" or "._a.jpg"."""
    parts = key.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in EXTENSIONS


def _photo(storage: Storage, entry: Entry) -> Photo:
    return Photo(entry.key, storage.uri_of(entry.key), entry.tag, entry.size)


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _set_of(key: str) -> tuple[str, str] | None:
    """The owner's folder and the set letter, A, B or C, of a key in either form; None for any other key."""
    folder, _, name = key.rpartition("/")
    owner, _, last = folder.rpartition("/")
    if match := SET_FOLDER.fullmatch(last):
        return owner, match[1].upper()
    if match := SET_FILE.fullmatch(name):
        return folder, match[1].upper()
    return None


def _auto(photos: list[Photo], root: str, *, only_sets: bool) -> dict[str, _Group]:
    letters: dict[str, set[str]] = defaultdict(set)
    for photo in photos:
        if found := _set_of(photo.key):
            letters[found[0]].add(found[1])
    owners = {owner for owner, seen in letters.items() if {"A", "B"} <= seen or (only_sets and "B" in seen)}
    sets: dict[str, _Group] = defaultdict(_Group)
    rest = []
    for photo in photos:
        owner, letter = _set_of(photo.key) or (_folder(photo.key), "")
        if letter and owner in owners:
            if letter != "C":
                (sets[owner].clean if letter == "A" else sets[owner].photos).append(photo)
        elif _folder(photo.key) in owners and not only_sets:
            sets[_folder(photo.key)].photos.append(photo)  # beside the sets: it is theirs, and is protected
        else:
            rest.append(photo)
    if only_sets:
        _warn(len(rest), "belong to no identity with a set_B")
        groups: dict[str, _Group] = {}
    else:
        groups = _folders([p for p in rest if "/" in p.key])
    taken = {*groups, *sets}
    if "" in sets:  # the input itself holds the sets: it lends its name
        while root in taken:
            root += "_"
        sets[root] = sets.pop("")
    groups |= sets
    return groups if only_sets else groups | _flat([p for p in rest if "/" not in p.key], taken=groups)


def _folders(photos: Iterable[Photo]) -> dict[str, _Group]:
    groups: dict[str, _Group] = defaultdict(_Group)
    for photo in photos:
        groups[_folder(photo.key)].photos.append(photo)
    return dict(groups)


def _flat(photos: list[Photo], *, taken: Iterable[str]) -> dict[str, _Group]:
    """Name each photo by its key without the extension; those that collide keep it, until no two are alike."""
    names = {photo.key: str(PurePosixPath(photo.key).with_suffix("")) for photo in photos}
    taken = list(taken)
    while True:
        count = Counter([*names.values(), *taken])
        clashing = [key for key, name in names.items() if count[name] > 1 and name != key]
        if not clashing:
            break
        names |= {key: key for key in clashing}
    reserved = set(taken)
    for key in names:  # a bucket, unlike a folder, can hold both "a.jpg" and "a.jpg/1.png"
        while names[key] in reserved:
            names[key] += "_"
        reserved.add(names[key])
    return {names[photo.key]: _Group([photo]) for photo in photos}


def _warn(count: int, why: str) -> None:
    if count:
        log.warning("%d photos are left out: they %s; use --layout auto to take them", count, why)
