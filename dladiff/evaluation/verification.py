"""The cosine at which an encoder verifies a person: the threshold of a false accept rate, measured on other people.

A comparison is the evaluator's: one photo against the unit mean embedding of at most REFERENCES photos of a person. The
terms are those of ISO/IEC 19795-1: an impostor comparison has two people, a genuine one has one person, and the false
accept rate is the share of impostor comparisons at or above the threshold.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dladiff.errors import ConfigError
from dladiff.evaluation.intervals import mean_over_people, tail
from dladiff.settings.validate import Items, Settings

REFERENCES = 16
"""Maximum number of clean photos behind a person's reference embedding."""
FAR = 1e-3
"""False accept rate of the verification rate."""
DRAWS = 500
"""Bootstrap resamples of people for the threshold's interval."""
SHIPPED = Path(__file__).parents[1] / "profiles" / "tiny" / "encoders" / "calibration.json"
"""Calibrations of the embedded encoders."""

Embedded = Mapping[str, NDArray[np.float64]]
"""Person to n x d unit embeddings, one per photo."""
Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]


class Calibration(Settings):
    """The threshold of one encoder, and what it rests on. The digest of the encoder's file identifies it."""

    encoder: str
    sha256: str = Field(min_length=1)
    false_accept_rate: Annotated[float, Field(gt=0, lt=1)]
    """The rate that the threshold keeps."""
    threshold: Cosine
    """Smallest cosine at which a comparison counts as verified."""
    threshold_low: Cosine
    threshold_high: Cosine
    """95 % interval of the threshold: a bootstrap over people."""
    people: Count
    photos: Count
    without_face: Count
    """Photos left out, because no face was found in them."""
    impostor_comparisons: Count
    false_accepts: Count
    """Impostor comparisons at or above the threshold."""
    genuine_comparisons: Count
    """Photos compared with the other photos of the same person."""
    true_accept_rate: Share | None
    """Share of the genuine comparisons at or above the threshold. None: nobody has two photos."""
    true_accept_low: Share | None = None
    true_accept_high: Share | None = None
    """95 % interval over people."""
    source: str = ""
    """What the photos are."""


class Calibrations(Settings):
    """A file of calibrations."""

    encoders: Items[Calibration]


@dataclass(frozen=True)
class Comparisons:
    """Cosines of n photos with the references of m people."""

    cosines: NDArray[np.float64]
    """n x m."""
    owners: NDArray[np.intp]
    """n: index of the person in each photo."""

    @property
    def impostor(self) -> NDArray[np.bool_]:
        """n x m: True where the photo is of another person than the reference."""
        other: NDArray[np.bool_] = self.owners[:, None] != np.arange(self.cosines.shape[1])[None, :]
        return other


def compared(people: Embedded) -> Comparisons:
    """Return the cosines of every photo with the reference of every person, people in the order of their names."""
    names = sorted(people)
    references = np.stack([unit_mean(people[name][:REFERENCES]) for name in names])
    photos = np.concatenate([people[name] for name in names])
    return Comparisons(photos @ references.T, np.repeat(np.arange(len(names)), [len(people[n]) for n in names]))


def genuine(people: Embedded) -> dict[str, list[float]]:
    """Return each person's cosines of a photo with the mean of at most REFERENCES of their other photos."""
    found: dict[str, list[float]] = {}
    for name, photos in sorted(people.items()):
        if len(photos) > 1:
            others = [np.delete(photos, i, axis=0)[:REFERENCES] for i in range(len(photos))]
            found[name] = [float(one @ unit_mean(rest)) for one, rest in zip(photos, others, strict=True)]
    return found


def threshold_at(cosines: NDArray[np.float64], far: float, weights: NDArray[np.float64] | None = None) -> float:
    """Return the smallest cosine that at most `far` of the (weighted) impostor cosines reach.

    Raises ValueError: there are fewer than 1 / `far` comparisons, so that even the largest cosine is reached by more.
    """
    order = np.argsort(-cosines, kind="stable")
    ordered = cosines[order]
    counts = np.cumsum(np.ones_like(ordered) if weights is None else weights[order])
    last_of_ties = np.append(ordered[1:] != ordered[:-1], True)
    allowed = np.flatnonzero(last_of_ties & (counts <= far * counts[-1] * (1 + 1e-12)))
    reached = allowed[counts[allowed] > 0]
    if not len(reached):
        raise ValueError(f"{len(cosines)} comparisons are too few for a false accept rate of {far:g}")
    return float(ordered[reached[-1]])


def calibrated(
    people: Embedded, *, encoder: str, sha256: str, without_face: int, source: str = "", far: float = FAR
) -> Calibration:
    """Return the calibration of an encoder from its embeddings of people's photos.

    Raises ConfigError: too few impostor comparisons for the false accept rate.
    """
    people = {name: photos for name, photos in people.items() if len(photos)}
    comparisons = compared(people) if len(people) > 1 else None
    impostors = comparisons.cosines[comparisons.impostor] if comparisons else np.empty(0)
    if comparisons is None or len(impostors) < 1 / far:
        needed = f"a false accept rate of {far:g} needs at least {math.ceil(1 / far):,}: give more people or photos"
        raise ConfigError([f"{encoder}: {len(impostors):,} comparisons of different people; {needed}"])
    threshold = threshold_at(impostors, far)
    low, high = _interval(comparisons, far)
    own = genuine(people)
    accepted = {name: [float(cosine >= threshold) for cosine in cosines] for name, cosines in own.items()}
    rate = mean_over_people(accepted)
    return Calibration(
        encoder=encoder,
        sha256=sha256,
        false_accept_rate=far,
        threshold=_cosine(threshold),
        threshold_low=_cosine(min(low, threshold)),
        threshold_high=_cosine(max(high, threshold)),
        people=len(people),
        photos=sum(map(len, people.values())),
        without_face=without_face,
        impostor_comparisons=len(impostors),
        false_accepts=int((impostors >= threshold).sum()),
        genuine_comparisons=sum(map(len, own.values())),
        true_accept_rate=rate.value if rate else None,
        true_accept_low=rate.low if rate else None,
        true_accept_high=rate.high if rate else None,
        source=source,
    )


def _interval(comparisons: Comparisons, far: float) -> tuple[float, float]:
    """Return a 95 % interval of the threshold.

    The bootstrap draws people with replacement. A comparison counts as often as both of its people are drawn, because
    comparisons that share a person are not independent.
    """
    people = comparisons.cosines.shape[1]
    impostor, rng = comparisons.impostor, np.random.default_rng(0)
    cosines = comparisons.cosines[impostor]
    found = []
    for _ in range(DRAWS):
        drawn = np.bincount(rng.integers(0, people, people), minlength=people).astype(np.float64)
        weights = (drawn[comparisons.owners][:, None] * drawn[None, :])[impostor]
        if weights.sum() >= 1 / far:
            found.append(_reached(cosines, far, weights))
    if not found:
        return float(cosines.min()), float(cosines.max())
    low, high = np.percentile(found, [100 * tail(people), 100 * (1 - tail(people))])
    return float(low), float(high)


def _reached(cosines: NDArray[np.float64], far: float, weights: NDArray[np.float64]) -> float:
    """Return `threshold_at`, or the largest drawn cosine where one comparison alone has more weight than `far`."""
    try:
        return threshold_at(cosines, far, weights)
    except ValueError:
        return float(cosines[weights > 0].max())


def unit_mean(vectors: NDArray[np.float64] | Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean of unit vectors, normalised to unit length."""
    mean = np.mean(vectors, axis=0)
    unit: NDArray[np.float64] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return unit


def _cosine(value: float) -> float:
    """Return a product of unit vectors without the rounding error beyond 1."""
    return min(1.0, max(-1.0, value))


def read_calibrations(data: bytes | str, where: str) -> tuple[Calibration, ...]:
    """Return the calibrations of a file. Raises ConfigError: it is no such file."""
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError([f"{where}: is no calibration; `dladiff calibrate` writes one"])
    found, faults = Calibrations.load(content)
    if found is None:
        raise ConfigError([f"{where}: {fault}" for fault in faults])
    return found.encoders


def shipped_calibrations() -> tuple[Calibration, ...]:
    """Return the calibrations of the embedded encoders."""
    return read_calibrations(SHIPPED.read_bytes(), str(SHIPPED))
