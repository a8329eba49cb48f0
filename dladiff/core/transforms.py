"""What happens to a photo between protection and theft, differentiable: JPEG, resizing, blur, mirroring.

Random transforms inside a loss are expectation over transformation (Athalye et al. 2018); off by default.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Generator
from torch.nn import functional

from dladiff.core.pixels import Images, to_float, to_uint8

Transform = Callable[[Images], Images]
"""Maps `b 3 h w` in [0, 1] to the same shape."""

QUALITY = (60, 95)
"""JPEG qualities drawn: from what a messenger sends to what a camera stores."""
SCALE = (0.5, 0.9)
"""Sides that a photo is resized to and back from, as shares of its own."""
SIGMA = (0.4, 1.2)
"""Standard deviation of the blur, pixels."""


def draw_transform(generator: Generator, *, mirrored: bool = True) -> Transform:
    """Draw one of: nothing, JPEG, resizing, blur; and, where `mirrored` allows it, every second time a mirror image.

    The whole batch gets the same draw. A draw takes three numbers from the generator whatever comes of it.
    """
    kind, strength, side = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    flip = mirrored and side < 0.5
    change = _of_kind(int(kind * 4), strength)
    return (lambda images: mirror(change(images))) if flip else change


def _of_kind(kind: int, strength: float) -> Transform:
    def between(low: float, high: float) -> float:
        return low + strength * (high - low)

    if kind == 1:
        return lambda images: jpeg(images, round(between(*QUALITY)))
    if kind == 2:
        return lambda images: resize(images, between(*SCALE))
    if kind == 3:
        return lambda images: blur(images, between(*SIGMA))
    return lambda images: images


def mirror(images: Images) -> Images:
    """Swap left and right."""
    return images.flip(-1)


def jpeg(images: Images, quality: int) -> Images:
    """Return what Pillow decodes of the images stored as JPEG; the gradient passes straight through.

    Straight-through estimator: Bengio et al. 2013. Outside [0, 1] an image is clipped and has no gradient.
    """
    clipped = images.clamp(0, 1)
    stored = torch.cat([_stored(one[None], quality) for one in clipped.detach()]).to(images)
    return stored + (clipped - clipped.detach())


def _stored(image: Images, quality: int) -> Images:
    with io.BytesIO() as file:
        Image.fromarray(to_uint8(image)).save(file, "JPEG", quality=quality)
        return to_float(np.array(Image.open(file)))


def resize(images: Images, scale: float) -> Images:
    """Shrink to `scale` times the sides and go back to the first size: bilinear with antialiasing, as Pillow does."""
    height, width = images.shape[-2:]
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    shrunk = functional.interpolate(images, small, mode="bilinear", antialias=True)
    return functional.interpolate(shrunk, (height, width), mode="bilinear", antialias=True)


def blur(images: Images, sigma: float) -> Images:
    """Gaussian blur; beyond the edges the edge pixel is repeated. `sigma` in pixels; 0 leaves the images alone."""
    if sigma == 0:
        return images
    radius = max(1, round(4 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    padded = functional.pad(images, [radius] * 4, mode="replicate")
    across = functional.conv2d(padded, weights.expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(across, weights[:, None].expand(channels, 1, -1, 1), groups=channels)
