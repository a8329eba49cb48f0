"""Means with a 95 % interval over two crossed samples: people, and the raters who saw their pictures."""

from collections.abc import Sequence

import numpy as np

from dladiff.evaluation.intervals import DRAWS, Estimate, tail

Answer = tuple[str, str, float]
"""Person, rater and value."""


def mean_over_people_and_raters(answers: Sequence[Answer], *, draws: int = DRAWS, seed: int = 0) -> Estimate | None:
    """Return the mean of all values; None without one.

    The interval is a pigeonhole bootstrap's (Owen 2007): it draws people and raters with replacement, and a value
    counts as often as both are drawn. With one rater or one person only the other is drawn; with one of each there is
    no interval.
    """
    if not answers:
        return None
    people, raters = (sorted({answer[i] for answer in answers}) for i in (0, 1))
    rows = np.array([people.index(person) for person, _, _ in answers])
    columns = np.array([raters.index(rater) for _, rater, _ in answers])
    values = np.array([value for _, _, value in answers], np.float64)
    mean, sizes = float(values.mean()), [n for n in (len(people), len(raters)) if n > 1]
    if not sizes:
        return Estimate(mean, None, None, len(values), len(people))
    rng = np.random.default_rng(seed)
    drawn = [_drawn(rng, len(people), draws)[:, rows], _drawn(rng, len(raters), draws)[:, columns]]
    weights = drawn[0] * drawn[1]
    total = weights.sum(1)
    means = (weights @ values)[total > 0] / total[total > 0]
    outside = 100 * tail(min(sizes))
    low, high = np.percentile(means, [outside, 100 - outside])
    return Estimate(mean, float(low), float(high), len(values), len(people))


def _drawn(rng: np.random.Generator, count: int, draws: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return how often each of `count` is drawn, draws x count; always once if there is only one."""
    return rng.multinomial(count, [1 / count] * count, draws).astype(np.float64)
