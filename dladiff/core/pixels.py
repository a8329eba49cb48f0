"""Pixels are uint8 outside and RGB floats in [0, 1] inside: one function each way, and the array types."""

import hashlib
import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

Images = Float[Tensor, "b 3 h w"]
Pixels = NDArray[np.uint8]
"""One photo, height x width x 3, RGB."""


def to_float(pixels: Pixels) -> Images:
    """Return `1 3 h w` floats in [0, 1] of one photo."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float().div(255)[None]


def to_uint8(image: Images) -> Pixels:
    """Return the rounded bytes, h x w x 3, of a batch of one."""
    rounded = (image[0].detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return rounded.permute(1, 2, 0).cpu().contiguous().numpy()


def content_digest(pixels: Pixels) -> bytes:
    """Return the SHA-256 of a photo's shape and bytes, which names its random streams wherever it lies."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def whole_levels(eta: float) -> float:
    """Return the largest whole number of grey levels within a bound, [0, 1] units: what rounding to bytes keeps."""
    return math.floor(eta * 255 + 1e-6) / 255
