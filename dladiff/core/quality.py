"""Visible quality of a protected photo, from its stored bytes: L-inf, PSNR, SSIM."""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

Bytes = NDArray[np.uint8]
"""One photo, height x width x 3, RGB."""


def linf(a: Bytes, b: Bytes, mask: NDArray[np.bool_] | None = None) -> float:
    """Largest absolute difference, [0, 1] units; over `mask` (h x w) only when given, 0 where it is empty."""
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16))
    if mask is not None:
        difference = difference[mask]
    return float(difference.max(initial=0)) / 255


def psnr(a: Bytes, b: Bytes, mask: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 255 the peak; infinite where nothing differs."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    if mask is not None:
        difference = difference[mask]
    mse = float(np.square(difference).mean()) if difference.size else 0.0
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(a: Bytes, b: Bytes) -> float:
    """Structural similarity (Wang et al. 2004), colour channels averaged, scikit-image's 7 px window."""
    return float(structural_similarity(a, b, channel_axis=2, data_range=255))
