"""The Frechet distance between two sets of features (Heusel et al. 2017): FID, whatever network gave the features."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]
"""n x d, one row an image."""


def frechet_distance(one: Features, other: Features) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982) of n x d and m x d features.

    With C1 = A'A and C2 = B'B, A and B being the centred features over sqrt(n - 1), the trace of the root is the sum of
    the singular values of AB': no root of a matrix is taken, and fewer images than features cause no trouble. Of few
    images the distance is too large (its bias falls as 1 / n): compare distances of equal n only.
    """
    gap = one.mean(0, dtype=np.float64) - other.mean(0, dtype=np.float64)
    a, b = _factor(one), _factor(other)
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(0.0, gap @ gap + np.square(a).sum() + np.square(b).sum() - 2 * shared))


def _factor(features: Features) -> NDArray[np.float64]:
    """A with A'A the unbiased covariance, at most d rows."""
    count, size = features.shape
    x = features.astype(np.float64)
    centred: NDArray[np.float64] = (x - x.mean(0)) / np.sqrt(max(1, count - 1))
    return centred if count <= size else np.asarray(np.linalg.qr(centred, mode="r"), np.float64)
