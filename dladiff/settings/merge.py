"""Settings from plain values: layers merged, dataclasses built with every fault at once, their digest."""

import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, Literal


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


def build(kind: type, values: Mapping[str, Any], path: str, faults: list[str]) -> Any:
    """Build the dataclass `kind`; unknown names (with the nearest known one) and wrong types go to `faults`.

    What is at fault keeps its default, so that the rest can be checked.
    """
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}{key}"
        if key not in known:
            faults.append(f"{name}: unknown setting{nearest(str(key), known)}")
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, Mapping):
                arguments[key] = build(typing.cast(type, hints[key]), value, f"{name}.", faults)
            else:
                faults.append(f"{name}: expected a mapping of settings, not {value!r}")
        else:
            before = len(faults)
            converted = _convert(name, value, hints[key], faults)
            if len(faults) == before:
                arguments[key] = converted
    return kind(**arguments)


def _convert(name: str, value: Any, hint: Any, faults: list[str]) -> Any:
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            faults.append(f"{name}: {value!r} is not one of {', '.join(map(str, allowed))}")
        return value
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, list | tuple):
            return tuple(_convert(f"{name}[{i}]", v, item, faults) for i, v in enumerate(value))
        faults.append(f"{name}: expected a list, not {value!r}")
        return value
    good = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[hint]
    if not isinstance(value, good) or (isinstance(value, bool) and hint is not bool):
        faults.append(f"{name}: expected {hint.__name__}, not {value!r}")
        return value
    try:
        return hint(value)
    except OverflowError:
        faults.append(f"{name}: {str(value)[:20]}... is too large")
        return value
