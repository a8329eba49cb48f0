"""Means with a 95 % interval. The bootstrap resamples people, because one person's images are not independent.

A bootstrap's percentile interval is too narrow for few people: with ten normal values it contains the mean in 90 % of
the cases. So wider percentiles are used: for a mean of normal values the interval is then as wide as Student's t
("expanded percentile interval", Hesterberg 2015, section 5.3). With fewer than six people the interval is at most the
range of the values, which contains the mean of three people in 75 % of the cases.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS = 2000
"""Bootstrap resamples."""
LEVEL = 0.95
"""Confidence level of every interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, which is None for fewer than two people."""

    value: float
    low: float | None
    high: float | None
    n: int
    """Number of values (images, photos or people)."""
    people: int
    """Number of people."""


def mean_over_people(values: Mapping[str, Sequence[float]], *, draws: int = DRAWS, seed: int = 0) -> Estimate | None:
    """Return the mean of all values, or None if there are none. `values` maps each person to their values.

    The interval is a cluster bootstrap's (Davison and Hinkley 1997, section 2.4): it resamples people with
    replacement, each with all of their values, and takes the mean.
    """
    groups = [np.asarray(v, np.float64) for _, v in sorted(values.items()) if len(v)]
    if not groups:
        return None
    sums, counts = np.array([g.sum() for g in groups]), np.array([float(len(g)) for g in groups])

    def mean(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = sums[rows].sum(-1) / counts[rows].sum(-1)
        return means

    everyone = np.arange(len(groups))
    low, high = (
        _percentiles(mean(_resampled(len(groups), draws, seed)), len(groups)) if len(groups) > 1 else (None, None)
    )
    return Estimate(float(mean(everyone)), low, high, int(counts.sum()), len(groups))


def statistic_over_people(
    people: Sequence[Any], statistic: Callable[[Sequence[Any]], float], n: int, *, draws: int, seed: int = 0
) -> Estimate | None:
    """Return a statistic of people with its interval, or None without people. `n` is the number of values.

    For a distance between distributions the interval is shifted upwards, because a resample repeats people. Read such
    an interval as a width only.
    """
    if not people:
        return None
    low: float | None = None
    high: float | None = None
    if len(people) > 1:
        rows = _resampled(len(people), draws, seed)
        low, high = _percentiles(np.array([statistic([people[i] for i in row]) for row in rows]), len(people))
    return Estimate(statistic(people), low, high, n, len(people))


def paired_change(
    one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], *, draws: int = DRAWS, seed: int = 0
) -> Estimate | None:
    """Return the mean over people of (mean of `one` - mean of `other`), of the people who have values in both."""
    differences = paired_differences(one, other)
    return mean_over_people({name: [value] for name, value in differences.items()}, draws=draws, seed=seed)


def paired_differences(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return mean of `one` - mean of `other` for each person who has values in both."""
    both = sorted(name for name in one.keys() & other.keys() if len(one[name]) and len(other[name]))
    return {name: float(np.mean(one[name]) - np.mean(other[name])) for name in both}


def _resampled(people: int, draws: int, seed: int) -> NDArray[np.intp]:
    """Return `draws x people` indices, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, people, (draws, people))


def tail(people: int) -> float:
    """Return the share of resamples beyond either end of the interval, for two people or more (Hesterberg 2015)."""
    width = math.sqrt(people / (people - 1)) * stats.t.ppf((1 + LEVEL) / 2, people - 1)
    return float(stats.norm.cdf(-width))


def _percentiles(values: NDArray[np.float64], people: int) -> tuple[float, float]:
    low, high = np.percentile(values, [100 * tail(people), 100 * (1 - tail(people))])
    return float(low), float(high)
