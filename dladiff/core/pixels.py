"""Conversion between uint8 pixels (outside) and RGB floats in [0, 1] (inside)."""

import hashlib
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dladiff.core.arrays import Pixels

Images = Float[Tensor, "b 3 h w"]
"""A batch of RGB images in [0, 1]."""


def to_float(pixels: Pixels) -> Images:
    """Return one photo (h x w x 3) as floats in [0, 1], `1 3 h w`."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float().div(255)[None]


def to_uint8(image: Images) -> Pixels:
    """Return a batch of one image as bytes, h x w x 3, clipped to [0, 1] and rounded to the nearest level."""
    rounded = (image[0].detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return rounded.permute(1, 2, 0).cpu().contiguous().numpy()


def content_digest(pixels: Pixels) -> bytes:
    """Return the SHA-256 of a photo's shape and bytes. It names the photo's random streams, whatever its file name."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def whole_levels(eta: float) -> float:
    """Return a bound ([0, 1] units) rounded down to whole grey levels, so that rounding to bytes keeps it."""
    return math.floor(eta * 255 + 1e-6) / 255
