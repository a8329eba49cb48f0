"""Settings as plain values: their layers merged, their digest, and the nearest of known names."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of plain JSON settings whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def nearest(name: str, known: list[str]) -> str:
    """Return ` (did you mean X?)` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay `layer` over `into`, mapping by mapping."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
