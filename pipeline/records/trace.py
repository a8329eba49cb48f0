"""Traces: losses and similarities of an identity's steps, stored in the output when `trace: true`."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dladiff.errors import NotFoundError, StorageError, TooLargeError
from pipeline.records.loading import MAX_BYTES
from pipeline.storage.base import Storage
from pipeline.storage.keys import task_name

WIDTH, HEIGHT = 320, 120  # units of a chart
POINTS = 160  # most points of a line: one every two units


@dataclass(frozen=True)
class Curve:
    """A chart: title, range of its values, number of steps, and (name, SVG points) of each series."""

    title: str
    low: float
    high: float
    steps: int
    lines: list[tuple[str, str]]


@dataclass(frozen=True)
class Trace:
    """Series of an identity: chart title to series name to values, one a step."""

    series: Mapping[str, Mapping[str, Sequence[float]]]

    def curves(self) -> list[Curve]:
        """Return the charts as SVG points; values that are not finite are skipped."""
        return [_curve(title, lines) for title, lines in self.series.items() if any(map(_finite, lines.values()))]


def trace_key(identity: str, part: int) -> str:
    """Return the storage key of a task's trace."""
    return f"traces/{task_name(identity, part)}.json"


def write_trace(storage: Storage, identity: str, part: int, series: Mapping[str, Any]) -> None:
    """Store the trace of a task; it replaces the trace of an earlier attempt."""
    storage.put(trace_key(identity, part), json.dumps(series).encode(), "application/json")


def read_trace(storage: Storage, identity: str, part: int = 0) -> Trace | None:
    """Return the trace of a task, None if there is none. Raises StorageError when it is damaged."""
    key = trace_key(identity, part)
    try:
        charts = json.loads(storage.get(key, MAX_BYTES))
        return Trace(
            {
                title: {name: [float(value) for value in values] for name, values in lines.items()}
                for title, lines in charts.items()
            }
        )
    except NotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, TooLargeError) as error:
        raise StorageError(f"{storage.uri_of(key)} is no trace; delete it") from error


def curves_of(storage: Storage, identity: str, most: int) -> tuple[list[Curve], bool]:
    """Return at most `most` charts of an identity, part by part, and whether there are more."""
    found: list[Curve] = []
    for part in _parts(storage, identity):
        trace = read_trace(storage, identity, part)
        for curve in trace.curves() if trace else ():
            found.append(replace(curve, title=f"Part {part}: {curve.title}") if part else curve)
        if len(found) > most:
            break
    return found[:most], len(found) > most


def traces_of(storage: Storage, identity: str) -> list[str]:
    """Return the storage keys of an identity's traces, one a task."""
    return [trace_key(identity, part) for part in _parts(storage, identity)]


def _parts(storage: Storage, identity: str) -> list[int]:
    prefix = trace_key(identity, 0).removesuffix(".json")
    own = re.compile(rf"{re.escape(prefix)}(?:~(\d{{4}}))?\.json")
    found = (own.fullmatch(entry.key) for entry in storage.list(prefix))
    return sorted(int(match[1] or 0) for match in found if match)


def _finite(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(i, value) for i, value in enumerate(values) if math.isfinite(value)]


def _curve(title: str, lines: Mapping[str, Sequence[float]]) -> Curve:
    drawn = {name: finite for name, values in lines.items() if (finite := _finite(values))}
    every = [value for finite in drawn.values() for _, value in finite]
    low, high = min(every), max(every)
    steps = max(len(values) for values in lines.values())
    span = (high - low) or 1.0

    def points(values: list[tuple[int, float]]) -> str:
        kept = values[:: math.ceil(len(values) / POINTS)]
        kept = kept if kept[-1] == values[-1] else [*kept, values[-1]]
        return " ".join(f"{WIDTH * i / max(1, steps - 1):.1f},{HEIGHT * (1 - (v - low) / span):.1f}" for i, v in kept)

    return Curve(title, low, high, steps, [(name, points(values)) for name, values in drawn.items()])
