"""Tar files of samples: 000001.jpg beside 000001.cls or 000001.json (WebDataset)."""

import json

from dladiff.errors import StorageError
from pipeline.sources.cells import IDENTITY, Refused, text_of
from pipeline.sources.grouping import ALONE, tell_apart, warn_left_out
from pipeline.sources.kinds import LOOK, ending_of, is_left_alone, is_photo_name, is_picture
from pipeline.sources.layouts.record import Layout, Listing
from pipeline.sources.shards import members, read_small
from pipeline.sources.spool import Listed
from pipeline.storage.base import Entry
from pipeline.storage.keys import is_utf8

NAMED_BY = ("cls", "cls.txt", "identity", "identity.txt")  # extensions of members whose text is the person
MAX_NOTE = 1 << 20  # bytes of a .cls or .json


def webdataset(listing: Listing) -> None:
    """Name each member's photo by its sample's .cls, else by a key of its .json, else by itself."""
    warn_left_out(sum(1 for _ in listing.photos), "are no members of tar files")
    add_members(listing)
    tell_apart(listing.spool)


def add_members(listing: Listing) -> None:
    """Add the photos of the listed tar files; a tar without one is counted as no photo."""
    for entry in [one for one in listing.left.shards if one.key.lower().endswith(".tar")]:
        listing.left.shards.remove(entry)
        rows = _rows(listing, entry)
        listing.spool.add(rows)
        if not rows:
            listing.left.no_picture(entry.key)


def _rows(listing: Listing, entry: Entry) -> list[Listed]:
    photos: list[tuple[str, int, int]] = []
    people: dict[str, str] = {}
    for name, start, size in members(listing.storage, entry, listing.left):
        sample, ending = _sample(name)
        if is_left_alone(name):
            listing.left.hidden += 1
        elif ending in NAMED_BY or ending == "json":
            person = _person(listing, entry, (name, start, size))
            if person and (ending != "json" or sample not in people):
                people[sample] = person
        elif _is_photo(listing, entry, name, start, size):
            photos.append((name, start, size))
        else:
            listing.left.not_photos[ending_of(name)] += 1
    return [
        Listed(
            people.get(_sample(name)[0], _sample(name)[0]),
            "B" if _sample(name)[0] in people else ALONE,
            f"{entry.key}#member={name}",
            size,
            f"{entry.tag}@{start}+{size}",
        )
        for name, start, size in photos
    ]


def _sample(name: str) -> tuple[str, str]:
    """Return the sample of a member, and what follows its first dot: "a/1.cls.txt" gives "a/1" and "cls.txt"."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _is_photo(listing: Listing, entry: Entry, name: str, start: int, size: int) -> bool:
    known = is_photo_name(name)
    return (
        is_picture(listing.storage.part(entry.key, start, min(size, LOOK))) if known is None and size else bool(known)
    )


def _person(listing: Listing, entry: Entry, member: tuple[str, int, int]) -> str:
    """Return the person that a .cls or .json names, "" for none; what cannot be read is counted as not read."""
    name, start, size = member
    fault = ""
    try:
        text = read_small(listing.storage, entry, start, size, MAX_NOTE).decode("utf-8-sig")
        found: object = text
        if name.lower().endswith(".json"):
            loaded = json.loads(text)
            known = loaded if isinstance(loaded, dict) else {}
            found = next((known[key] for key in IDENTITY if key in known), None)
        person = text_of(found)
        fault = str(person) if isinstance(person, Refused) else "" if is_utf8(person) else "is no name"
    except (ValueError, RecursionError, StorageError) as error:
        person, fault = "", f"cannot be read ({type(error).__name__})"
    if fault:
        listing.left.skip(f"{entry.key}#member={name}", f"the person in it {fault}")
        return ""
    return person


LAYOUT = Layout(
    name="webdataset",
    about="a picture in a tar file is a photo of the person in its sample's .cls, or .json key identity or person; "
    "without one, each photo is an identity",
    group=webdataset,
)
