"""From records of attacks to estimates: each metric's values by person, and their mean with its interval.

A record is the stored result of one attack on one person: `identity`, `condition`, `attack`, `base`, `preprocessing`,
`share`, `seed`, `status` ("done", "failed", "no_photo"), `photos`, `dropped`, `images` (prompt to the rows of
`scores.generated_rows`) and `protected` (rows of `scores.protected_row`, with `quality`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dladiff.evaluation.frechet import frechet_distance
from dladiff.evaluation.intervals import Estimate, mean_over_people, statistic_over_people
from dladiff.evaluation.metrics import METRICS
from dladiff.evaluation.metrics.record import Metric

Result = Mapping[str, Any]
"""Stored result of one attack on one person."""
Values = dict[str, list[float]]
"""Person to values."""
FeaturesOf = Callable[[Result, str], NDArray[np.float32] | None]
"""(record, prompt) to n x d features, or None if there are none; prompt "" means the attacker's crops."""
FID_DRAWS = 200
"""Bootstrap resamples of FID, which takes longer than a mean."""


@dataclass(frozen=True)
class Group:
    """Records of one method under one attack: all people, all seeds."""

    records: tuple[Result, ...]
    among: frozenset[tuple[str, int]] | None = None
    """People and seeds to include, so that all rows of a table are means over the same; None: all."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Encoder to the smallest cosine that verifies."""

    @property
    def done(self) -> list[Result]:
        """The included records that hold measurements."""
        done = (r for r in self.records if r["status"] == "done")
        return [r for r in done if self.among is None or (r["identity"], r["seed"]) in self.among]

    def people(self) -> int:
        """Return the number of people with measurements."""
        return len({r["identity"] for r in self.done})

    def count(self, status: str) -> int:
        """Return the number of records with this status."""
        return sum(r["status"] == status for r in self.records)

    def dropped(self) -> int:
        """Return the number of photos in which the attacker found no face."""
        return sum(r.get("dropped", 0) for r in self.records)

    def values(self, metric: str, encoder: str = "", prompt: str = "", rescore: str = "") -> Values:
        """Return each person's values of a metric: of generated pictures of a prompt, or of their second scores."""
        values: Values = {}
        for record in self.done:
            rows = _rows(METRICS[metric], record, prompt, rescore)
            numbers = _of_record(METRICS[metric], rows, encoder, self.thresholds.get(encoder))
            values.setdefault(record["identity"], []).extend(numbers)
        return values

    def estimate(self, metric: str, encoder: str = "", prompt: str = "", rescore: str = "") -> Estimate | None:
        """Return a metric's mean over images or photos, with its interval over people; None without a value."""
        return mean_over_people(self.values(metric, encoder, prompt, rescore))


def group(records: Iterable[Result], **where: Any) -> Group:
    """Return the records whose fields have these values."""
    return Group(tuple(r for r in records if all(r[key] == value for key, value in where.items())))


def common(groups: Iterable[Group]) -> frozenset[tuple[str, int]]:
    """Return the people and seeds of which all methods have measurements; methods without any are ignored."""
    own = [{(r["identity"], r["seed"]) for r in g.done} for g in groups]
    return frozenset(set.intersection(*filter(None, own)) if any(own) else ())


def fid(attacked: Group, clean: Group, prompt: str, features: FeaturesOf, *, per_person: bool) -> Estimate | None:
    """Return the FID of generated images to the attacker's crops of the clean photos (`clean`).

    It is pooled over people, as in the paper's main tables, or with `per_person` the mean over people, as in its Table
    10. None if features are missing.
    """
    references = {
        name: _stack(features(r, "") for r in clean.done if r["identity"] == name)
        for name in {r["identity"] for r in clean.done}
    }
    pairs: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for name in sorted({r["identity"] for r in attacked.done}):
        generated = _stack(features(r, prompt) for r in attacked.done if r["identity"] == name)
        reference = references.get(name)
        if generated is not None and reference is not None:
            pairs[name] = (reference, generated)
    if per_person:
        return mean_over_people({name: [frechet_distance(*pair)] for name, pair in pairs.items()})

    def pooled(people: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> float:
        return frechet_distance(np.concatenate([p[0] for p in people]), np.concatenate([p[1] for p in people]))

    images = sum(len(generated) for _, generated in pairs.values())
    return statistic_over_people(list(pairs.values()), pooled, images, draws=FID_DRAWS)


def _stack(parts: Iterable[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def _rows(metric: Metric, record: Result, prompt: str, rescore: str) -> list[Mapping[str, Any]]:
    """Return the stored rows that a metric reads."""
    if metric.of == "generated":
        pictures = record["images"].get(prompt, ())
        return [own for row in pictures if (own := row.get("rescored", {}).get(rescore) if rescore else row)]
    if metric.of == "stored":
        return [row["quality"] for row in record["protected"] if "quality" in row]
    return list(record["protected"])


def _of_record(metric: Metric, rows: Iterable[Mapping[str, Any]], encoder: str, threshold: float | None) -> list[float]:
    values = [v for row in rows if (v := metric.value(row.get(metric.entry), encoder)) is not None]
    if metric.verifies:
        values = [] if threshold is None else [float(value >= threshold) for value in values]
    return [metric.reduce(values)] if metric.reduce and values else values
