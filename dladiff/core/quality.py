"""Image quality of a protected photo against its original, from stored bytes: L-inf, PSNR, SSIM.

Photos are h x w x 3 RGB bytes. Imports no torch, because the driver uses this module.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from dladiff.core.arrays import Pixels


def linf(a: Pixels, b: Pixels, mask: NDArray[np.bool_] | None = None) -> float:
    """Return the largest absolute difference, [0, 1] units, within `mask` (h x w) if given; 0 for an empty mask."""
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16))
    if mask is not None:
        difference = difference[mask]
    return float(difference.max(initial=0)) / 255


def psnr(a: Pixels, b: Pixels, mask: NDArray[np.bool_] | None = None) -> float:
    """Return the PSNR in dB (peak 255), within `mask` (h x w) if given; infinity where nothing differs."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    if mask is not None:
        difference = difference[mask]
    mse = float(np.square(difference).mean()) if difference.size else 0.0
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(a: Pixels, b: Pixels) -> float:
    """Return the SSIM (Wang et al. 2004): mean over colour channels, scikit-image's 7 px window."""
    return float(structural_similarity(a, b, channel_axis=2, data_range=255))
