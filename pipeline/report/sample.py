"""Choose the photos and identities of a report: the worst, the slowest, and a random sample of the rest."""

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.records.schema import IdentityRow, PhotoRow


@dataclass
class Person:
    """One identity in the report, with the worst figures of its photos."""

    name: str
    status: str
    reason: str = ""
    photos: int = 0
    unprotected: int = 0
    seconds: float = 0.0
    optimised: float | None = None
    """Highest cosine after protection, over photos and optimised encoders."""
    held_out: float | None = None
    """The same for held-out encoders."""
    psnr: float | None = None
    """Lowest PSNR of its photos, dB."""
    ssimulacra2: float | None = None
    """Lowest SSIMULACRA2 of its photos, whole or face."""

    def add(self, row: PhotoRow) -> None:
        """Add the row of one of its photos."""
        self.photos += 1
        self.unprotected += row["status"] in ("failed", "skipped")
        self.optimised = _largest(self.optimised, similarity(row, optimised=True))
        self.held_out = _largest(self.held_out, similarity(row, optimised=False))
        if row["psnr"] is not None:
            self.psnr = row["psnr"] if self.psnr is None else min(self.psnr, row["psnr"])
        self.ssimulacra2 = _smallest(self.ssimulacra2, row.get("ssimulacra2"), row.get("ssimulacra2_face"))


class Sample:
    """At most `size` rows: a fifth each for the worst by each ranking, and random rows."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.share = size, max(1, size // 5)
        self.random = random.Random(seed)
        self.seen = 0
        self._worst: list[list[tuple[float, int, PhotoRow]]] = [[] for _ in RANKINGS]
        self._drawn: list[PhotoRow] = []  # reservoir sampling: each row so far is in it with equal probability

    def add(self, row: PhotoRow) -> None:
        """Consider a row for the sample."""
        for heap, score in zip(self._worst, RANKINGS, strict=True):
            if (value := score(row)) is not None:
                entry = (value, -self.seen, row)  # of equal values the first stays; rows are never compared
                if len(heap) < self.share:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)
        self.seen += 1
        if len(self._drawn) < self.size:
            self._drawn.append(row)
        elif (slot := self.random.randrange(self.seen)) < self.size:
            self._drawn[slot] = row

    def rows(self) -> list[PhotoRow]:
        """Return the chosen rows, worst first; all rows if there are at most `size`."""
        worst = [row for heap in self._worst for _, _, row in sorted(heap, reverse=True)]
        chosen = {id(row): row for row in [*worst, *self._drawn]}
        return list(chosen.values())[: self.size]


def listed(people: Iterable[Person], names: set[str], size: int) -> list[Person]:
    """Return the identities `names` and others, up to `size`, half the worst and half the slowest; worst first."""
    everybody = list(people)
    chosen = {one.name: one for one in everybody if one.name in names}
    others = [one for one in everybody if one.name not in names]
    free = max(0, size - len(chosen))
    worst = heapq.nlargest(free, others, key=lambda one: (one.status != "done", or_least(one.optimised)))
    slowest = heapq.nlargest(free, others, key=lambda one: one.seconds)
    for pair in zip(worst, slowest, strict=True):
        for one in pair:
            if len(chosen) < size:
                chosen[one.name] = one
    return sorted(chosen.values(), key=lambda one: (-or_least(one.optimised), one.name))


def seconds_of(row: PhotoRow | IdentityRow) -> float:
    """Return the total seconds of a row's identity, or of its part if the identity was split."""
    return float(sum(dict(row["seconds"] or {}).values()))


def similarity(row: PhotoRow, *, optimised: bool) -> float | None:
    """Return the highest cosine after protection on any optimised, or held-out, encoder; None if not measured."""
    found = [s["after"] for s in row["similarity"] or [] if s["optimised"] is optimised and s["after"] is not None]
    return max(found, default=None)


def _unprotected(row: PhotoRow) -> float | None:
    return {"failed": 2.0, "skipped": 1.0, "layer1_only": 0.0}.get(row["status"])


def _psnr(row: PhotoRow) -> float | None:
    return None if row["psnr"] is None else -float(row["psnr"])


RANKINGS: tuple[Callable[[PhotoRow], float | None], ...] = (
    _unprotected,
    lambda row: similarity(row, optimised=True),
    _psnr,
    lambda row: (row["first"] and seconds_of(row)) or None,  # one photo of an identity: all carry the same seconds
)
"""Scores of the rankings: larger is worse, None is not ranked."""


def _largest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _smallest(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def or_least(value: float | None) -> float:
    """Return a cosine, or -2 for None, which is below every cosine."""
    return -2.0 if value is None else value
