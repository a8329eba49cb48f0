"""Mean opinion score: the DLADiff paper's scale (section 7.2) and the agreement of raters."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SCALE = {
    5: "As good as what a model fine-tuned on clean photos generates.",
    4: "Slight distortions, such as artifacts, blurring, noise, and blocky distortions.",
    3: "More severe than 4, but facial features such as eyes and mouth can still be recognised.",
    2: "Facial features and details are significantly destroyed.",
    1: "Unrecognisable, or disgusting, terrifying faces.",
}
"""Score to its meaning."""


def krippendorff_alpha(
    units: Mapping[str, Sequence[float]], metric: Literal["nominal", "ordinal", "interval"] = "ordinal"
) -> float | None:
    """Return Krippendorff's alpha (2011, section E: any number of observers, missing data). `units`: unit to ratings.

    1 is perfect agreement, 0 agreement by chance. None if no unit has two ratings or if all ratings are equal.
    """
    pairable = [np.asarray(v, np.float64) for v in units.values() if len(v) > 1]
    if not pairable:
        return None
    values = np.unique(np.concatenate(pairable))
    coincidences = np.zeros((len(values), len(values)))
    for ratings in pairable:
        counts = (ratings[:, None] == values).sum(0).astype(np.float64)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(ratings) - 1)
    totals = coincidences.sum(0)
    distance = _distances(values, totals, metric)
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return None if expected == 0 else float(1 - (coincidences * distance).sum() / expected)


def _distances(values: NDArray[np.float64], totals: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    if metric == "nominal":
        return 1.0 - np.eye(len(values))
    positions = values
    if metric == "ordinal":  # a value's position is the mean rank of its ties
        positions = np.cumsum(totals) - totals / 2
    squared: NDArray[np.float64] = np.square(positions[:, None] - positions[None, :])
    return squared
