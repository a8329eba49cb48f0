"""Paired tests over people with a correction for several comparisons: the sign-flip permutation test and Holm's method.

Under the hypothesis that two methods are alike, a person's difference is as likely to have either sign. The test counts
the assignments of signs whose mean is at least as far from 0 as the measured one (Fisher 1935, section 21).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EXACT_PEOPLE = 16
"""Up to this number of people all 2^n assignments of signs are counted; 2^16 take half a megabyte each."""
DRAWS = 2**EXACT_PEOPLE
"""Random assignments for more people."""
TOLERANCE = 1e-12
"""Relative difference of two means that counts as a tie: sums of floats depend on their order."""


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float | None:
    """Return the two-sided p-value of the mean difference, one difference per person; None without people.

    It is exact for at most EXACT_PEOPLE people. With n people it is at least 2 / 2^n: five people cannot be below .05.
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        return None
    exact = len(values) <= EXACT_PEOPLE
    means = np.abs(_signs(len(values), exact, seed) @ values)
    observed = abs(values.sum())
    reached = int((means >= observed - TOLERANCE * np.abs(values).sum()).sum())
    # of random assignments the measured one counts too, so that p is never 0 (Phipson and Smyth 2010)
    return reached / len(means) if exact else (reached + 1) / (len(means) + 1)


def _signs(people: int, exact: bool, seed: int) -> NDArray[np.int8]:
    """Return assignments x people, of -1 and 1: all of them, or DRAWS random ones."""
    if exact:
        bits = (np.arange(2**people)[:, None] >> np.arange(people)) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (DRAWS, people))
    return (2 * bits - 1).astype(np.int8)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values corrected for their number (Holm 1979, step-down), at most 1. None stays None and counts not.

    Rejecting those at or below .05 keeps the probability of any false rejection at .05.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected
