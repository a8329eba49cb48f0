"""Whether the photos of one identity show one person, by the cosines of their largest faces. Imports no torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_FACES = 4
"""Fewer faces have too few pairs: three photos of one person can all be hard ones."""
MIN_MEDIAN = 0.17
"""Median cosine over all pairs; below it the photos show different people. `python -m tests.acceptance.grouping`
measures how often that is wrong; docs/use.md has the figures."""


def median_cosine(faces: Sequence[NDArray[np.float32]]) -> float | None:
    """Return the median cosine over all pairs of unit embeddings, None for fewer than MIN_FACES."""
    if len(faces) < MIN_FACES:
        return None
    stacked = np.stack(faces).astype(np.float64)
    first, second = np.triu_indices(len(stacked), 1)
    return float(np.median((stacked @ stacked.T)[first, second]))


def different_people(faces: Sequence[NDArray[np.float32]]) -> str:
    """Return why the faces are probably of different people and what to do, "" if they are not or too few."""
    median = median_cosine(faces)
    if median is None or median >= MIN_MEDIAN:
        return ""
    return (
        f"photos of this identity show different people (median similarity {median:.2f} of {len(faces)} faces); "
        "use --layout flat"
    )
