"""Assign an output's files to identities by their keys, and remove leftovers of dead writers."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from dladiff.errors import StorageError
from pipeline.records.lease import LEASE_S
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

RECORDS = ("done", "failed")
OWNED = ("photos", "traces", "starts", *RECORDS)  # folders with an escaped identity in the key, in order of deletion
_PART = re.compile(r"~\d{4}$")  # end of a task name; the digest of a shortened name has twelve digits
_COMPANION = "._"  # prefix of hidden companion files of some file managers


@dataclass
class Held:
    """What an output holds of one identity: photos, their bytes, and all keys in order of deletion."""

    photos: int = 0
    bytes: int = 0
    keys: list[str] = field(default_factory=list)


def owner(key: str) -> str | None:
    """Return the escaped identity in a key, None if there is none."""
    folder, _, rest = key.partition("/")
    name, below, _ = rest.partition("/")
    companion = name.startswith(_COMPANION)
    if folder in ("photos", "starts"):
        if not below and not companion:
            return None
    elif folder in OWNED and not below and name.endswith(".json"):
        name = name.removesuffix(".json")
    else:
        return None
    name = name.removeprefix(_COMPANION)
    return name if folder == "photos" else _PART.sub("", name)


def held(storage: Storage, present: set[str] | None) -> dict[str, Held]:
    """Return what an output holds by escaped identity, with keys of the identities that are not in `present`.

    Without `present` only photos are counted.
    """
    found: dict[str, Held] = defaultdict(Held)
    for folder in OWNED if present is not None else ("photos",):
        for entry in storage.list(f"{folder}/"):
            name = owner(entry.key)
            if name is None:
                continue
            one = found[name]
            if folder == "photos":
                one.photos += 1
                one.bytes += entry.size
            if present is not None and name not in present:
                one.keys.append(entry.key)
    return found


def sweep(storage: Storage, prefixes: Iterable[str]) -> list[str]:
    """Delete leftovers of dead writers that are older than a lease; return lines on what stays.

    Needs the lease. Younger leftovers may belong to an actor that outlived its driver.
    """
    young = 0
    try:
        for prefix in prefixes:
            for left in list(storage.unfinished(prefix)):
                if left.age < LEASE_S:
                    young += 1
                else:
                    storage.discard(left)
    except StorageError as error:
        return [f"unfinished writes: {error}"]
    where = shown(storage.uri)
    return [f"{young} unfinished writes in {where} are younger than {LEASE_S:.0f} s: run this again later"] * bool(
        young
    )
