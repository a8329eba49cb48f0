"""Merge the method's results of several groups of photos into one."""

import dataclasses
from collections import Counter, defaultdict
from typing import Any


def together(outs: list[Any]) -> Any:
    """Return the results of several groups as one: seconds, steps and traces added, the highest memory peak."""
    if len(outs) == 1:
        return outs[0]
    seconds: Counter[str] = Counter()
    steps: dict[str, Counter[str]] = defaultdict(Counter)
    trace: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for out in outs:
        seconds.update(out.seconds)
        for stage, counts in out.steps.items():
            steps[stage].update(counts)
        for chart, series in out.trace.items():
            for name, values in series.items():
                trace[chart][name] += values
    notes = [f"worked on in {len(outs)} groups of photos that each fit max_task_bytes", *(out.note for out in outs)]
    return dataclasses.replace(
        outs[0],
        seconds=dict(seconds),
        steps=steps,
        trace=trace,
        largest_faces=[face for out in outs for face in out.largest_faces],
        peak_memory_bytes=max(out.peak_memory_bytes for out in outs),
        note="; ".join(dict.fromkeys(note for note in notes if note)),
    )
