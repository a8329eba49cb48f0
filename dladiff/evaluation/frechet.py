"""The Frechet distance between two sets of features (Heusel et al. 2017), called FID for Inception's features."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]
"""n x d, one row per image."""


def frechet_distance(one: Features, other: Features) -> float:
    """Return |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982) of n x d and m x d features.

    Let C1 = A'A and C2 = B'B, where A and B are the centred features over sqrt(n - 1). Then the trace of the root is
    the sum of the singular values of AB'. This needs no matrix square root and works with fewer images than features.
    The bias is positive and falls as 1 / n: compare distances of equal n only.
    """
    gap = one.mean(0, dtype=np.float64) - other.mean(0, dtype=np.float64)
    a, b = _factor(one), _factor(other)
    root_trace = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(0.0, gap @ gap + np.square(a).sum() + np.square(b).sum() - 2 * root_trace))


def _factor(features: Features) -> NDArray[np.float64]:
    """Return A, at most d x d, such that A'A is the unbiased covariance."""
    count, size = features.shape
    x = features.astype(np.float64)
    centred: NDArray[np.float64] = (x - x.mean(0)) / np.sqrt(max(1, count - 1))
    return centred if count <= size else np.asarray(np.linalg.qr(centred, mode="r"), np.float64)
