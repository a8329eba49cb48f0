"""The photos of a task, as its work holds them."""

import json
from collections.abc import Sequence
from typing import Any

from pipeline.sources import shards
from pipeline.sources.find import Photo
from pipeline.sources.index_file import MISSING, REFUSED


def listed(photos: Sequence[Photo]) -> list[dict[str, Any]]:
    """Return photos as a task holds them."""
    return [{"key": p.key, "uri": p.uri, "size": p.size} | _in_file(p) | _faces(p) | _fault(p.tag) for p in photos]


def _in_file(photo: Photo) -> dict[str, Any]:
    """Return the entry of a photo inside of a file, {} for any other."""
    return {"shard": photo.tag} if shards.split(photo.uri) else {}


def _faces(photo: Photo) -> dict[str, Any]:
    """Return the entry of a photo whose index gives faces, {} for any other."""
    return {"faces": json.loads(photo.faces)} if photo.faces else {}


def _fault(tag: str) -> dict[str, Any]:
    """Return the entries that mark a photo of an index as refused or missing, {} for any other."""
    if tag.startswith(REFUSED):
        return {"refused": tag.removeprefix(REFUSED)}
    return {"missing": True} if tag == MISSING else {}
