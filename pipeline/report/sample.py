"""Which photos and identities a report shows: the worst and slowest, and a seeded draw of the rest."""

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass
class Person:
    """One identity as the page lists it: the worst figures of its photos."""

    name: str
    status: str
    reason: str = ""
    photos: int = 0
    unprotected: int = 0
    seconds: float = 0.0
    optimised: float | None = None
    """Highest cosine left on any optimised encoder, any photo."""
    held_out: float | None = None
    """The same of held-out encoders."""
    psnr: float | None = None
    """Lowest of its photos, dB."""

    def add(self, row: Row) -> None:
        """Take in a row of one of its photos."""
        self.photos += 1
        self.unprotected += row["status"] in ("failed", "skipped")
        self.optimised = _largest(self.optimised, similarity(row, optimised=True))
        self.held_out = _largest(self.held_out, similarity(row, optimised=False))
        if row["psnr"] is not None:
            self.psnr = row["psnr"] if self.psnr is None else min(self.psnr, row["psnr"])


class Sample:
    """At most `size` rows: the worst by each ranking, a fifth of the places each, and a random rest."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.share = size, max(1, size // 5)
        self.random = random.Random(seed)
        self.seen = 0
        self._worst: list[list[tuple[float, int, Row]]] = [[] for _ in RANKINGS]
        self._drawn: list[Row] = []  # a reservoir: every row so far is in it with the same chance

    def add(self, row: Row) -> None:
        """Look at a row."""
        for heap, score in zip(self._worst, RANKINGS, strict=True):
            if (value := score(row)) is not None:
                entry = (value, -self.seen, row)  # of equals the first stays, and rows are never compared
                if len(heap) < self.share:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)
        self.seen += 1
        if len(self._drawn) < self.size:
            self._drawn.append(row)
        elif (place := self.random.randrange(self.seen)) < self.size:
            self._drawn[place] = row

    def rows(self) -> list[Row]:
        """Return the chosen rows, worst first; all of them where there are no more than `size`."""
        worst = [row for heap in self._worst for _, _, row in sorted(heap, reverse=True)]
        chosen = {id(row): row for row in [*worst, *self._drawn]}
        return list(chosen.values())[: self.size]


def listed(people: Iterable[Person], names: set[str], size: int) -> list[Person]:
    """Return the identities `names`, and others up to `size` in all: half the worst, half the slowest. Worst first."""
    everybody = list(people)
    chosen = {one.name: one for one in everybody if one.name in names}
    others = [one for one in everybody if one.name not in names]
    room = max(0, size - len(chosen))
    worst = heapq.nlargest(room, others, key=lambda one: (one.status != "done", or_least(one.optimised)))
    slowest = heapq.nlargest(room, others, key=lambda one: one.seconds)
    for pair in zip(worst, slowest, strict=True):
        for one in pair:
            if len(chosen) < size:
                chosen[one.name] = one
    return sorted(chosen.values(), key=lambda one: (-or_least(one.optimised), one.name))


def seconds_of(row: Row) -> float:
    """Return the seconds of all steps of a row's identity (of its part, for one that was split)."""
    return float(sum(dict(row["seconds"] or {}).values()))


def similarity(row: Row, *, optimised: bool) -> float | None:
    """Return the highest cosine that is left on any optimised, or held-out, encoder; None when none was measured."""
    found = [s["after"] for s in row["similarity"] or [] if s["optimised"] is optimised and s["after"] is not None]
    return max(found, default=None)


def _unprotected(row: Row) -> float | None:
    return {"failed": 2.0, "skipped": 1.0, "layer1_only": 0.0}.get(row["status"])


def _psnr(row: Row) -> float | None:
    return None if row["psnr"] is None else -float(row["psnr"])


RANKINGS: tuple[Callable[[Row], float | None], ...] = (
    _unprotected,
    lambda row: similarity(row, optimised=True),
    _psnr,
    lambda row: (row["first"] and seconds_of(row)) or None,  # one photo an identity: all have its seconds
)
"""Larger is worse; None takes no part."""


def _largest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def or_least(value: float | None) -> float:
    """Return a cosine, or what is below every cosine for None."""
    return -2.0 if value is None else value
