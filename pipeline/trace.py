"""Traces: the losses and similarities of an identity's steps, kept beside the records when `trace: true`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dladiff.errors import NotFoundError
from pipeline.names import escape
from pipeline.storage import Storage

WIDTH, HEIGHT = 320, 120  # units of a chart


@dataclass(frozen=True)
class Curve:
    """A chart: its title, and one named line of points for each series, drawn between `low` and `high`."""

    title: str
    low: float
    high: float
    steps: int
    lines: list[tuple[str, str]]


@dataclass(frozen=True)
class Trace:
    """Series of an identity: chart title to name to values, one a step."""

    series: Mapping[str, Mapping[str, Sequence[float]]]

    def curves(self) -> list[Curve]:
        """Return the charts, as SVG points."""
        return [_curve(title, lines) for title, lines in self.series.items() if any(lines.values())]


def trace_key(identity: str, part: int) -> str:
    """Return the storage key of a task's trace."""
    return f"traces/{escape(identity)}{f'~{part:04d}' if part else ''}.json"


def write_trace(storage: Storage, identity: str, part: int, series: Mapping[str, Any]) -> None:
    """Write the trace of a task, or over the one that an earlier attempt left."""
    storage.put(trace_key(identity, part), json.dumps(series).encode(), "application/json")


def read_trace(storage: Storage, identity: str, part: int = 0) -> Trace | None:
    """Return the trace of a task, None where none was kept."""
    try:
        return Trace(json.loads(storage.get(trace_key(identity, part))))
    except NotFoundError:
        return None


def traces_of(storage: Storage, identity: str) -> list[str]:
    """Return the storage keys of an identity's traces, one a task."""
    place = trace_key(identity, 0).removesuffix(".json")
    found = (entry.key for entry in storage.list(place))
    return [key for key in found if key == f"{place}.json" or key.startswith(f"{place}~")]


def _curve(title: str, lines: Mapping[str, Sequence[float]]) -> Curve:
    every = [value for values in lines.values() for value in values]
    low, high = min(every), max(every)
    steps = max(len(values) for values in lines.values())
    span = (high - low) or 1.0

    def points(values: Sequence[float]) -> str:
        return " ".join(
            f"{WIDTH * i / max(1, steps - 1):.1f},{HEIGHT * (1 - (v - low) / span):.1f}" for i, v in enumerate(values)
        )

    return Curve(title, low, high, steps, [(name, points(values)) for name, values in lines.items() if values])
