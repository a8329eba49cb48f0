"""Read every stored photo again: checksum, size, decodes, and the bound against the source where it can be read."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dladiff.errors import PhotoError, StorageError
from pipeline.manifest import load_records
from pipeline.photos import decode
from pipeline.storage import Storage, open_storage

SLACK = 1e-6  # [0, 1] units: far below one grey level


@dataclass
class Verified:
    """Photos read, how many of them were compared with their source, and the faults, one line each."""

    photos: int = 0
    compared: int = 0
    faults: list[str] = field(default_factory=list)


def verify(storage: Storage) -> Verified:
    """Check every photo of every commit record. Raises StorageError when the storage cannot be listed."""
    result = Verified()
    for _, record in sorted(load_records(storage).done.items()):
        for row in record["photos"]:
            if row.get("output_key"):
                result.photos += 1
                result.faults += [f"{row['output_key']}: {fault}" for fault in _check(storage, row, result)]
    return result


def _check(storage: Storage, row: dict[str, Any], result: Verified) -> list[str]:
    try:
        data = storage.get(row["output_key"])
        if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
            return ["its checksum is not the recorded one"]
        stored = decode(data, max_pixels=row["width"] * row["height"], min_side=1).pixels
    except (PhotoError, StorageError) as error:
        return [str(error)]
    if stored.shape[:2] != (row["height"], row["width"]):
        return [f"is {stored.shape[1]} x {stored.shape[0]} px, recorded {row['width']} x {row['height']}"]
    source = _source(row)
    if source is None:
        return []
    result.compared += 1
    bound = sum(json.loads(row[name])["eta"] for name in ("finetuning_layer", "zero_shot_layer") if row.get(name))
    change = float(np.abs(stored.astype(np.int16) - source.astype(np.int16)).max(initial=0)) / 255
    return [] if change <= bound + SLACK else [f"changed by {change * 255:.0f}/255, bound {bound * 255:.1f}/255"]


def _source(row: dict[str, Any]) -> Any:
    """The source's pixels; None when it is gone, unreadable or no longer the photo that was protected."""
    place, _, name = row["source_uri"].rpartition("/")
    try:
        data = open_storage(place or "/").get(name)
        if hashlib.sha256(data).hexdigest() != row["source_sha256"]:
            return None
        return decode(data, max_pixels=row["width"] * row["height"], min_side=1).pixels
    except (PhotoError, StorageError):
        return None
