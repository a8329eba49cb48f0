"""Differentiable image transforms that a published photo may go through: JPEG, resizing, blur, mirroring.

Random transforms inside a loss give expectation over transformation (EOT, Athalye et al. 2018); off by default.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Generator
from torch.nn import functional

from dladiff.core.codec import Codec
from dladiff.core.pixels import Images, to_float, to_uint8

Transform = Callable[[Images], Images]
"""Maps `b 3 h w` in [0, 1] to the same shape."""

QUALITY = (60, 95)
"""Range of JPEG qualities: from a messenger's to a camera's."""
SCALE = (0.5, 0.9)
"""Range of the resizing factor."""
SIGMA = (0.4, 1.2)
"""Range of the blur's standard deviation, pixels."""


def draw_transform(generator: Generator, *, mirrored: bool = True) -> Transform:
    """Return a random transform: identity, JPEG, resizing or blur; if `mirrored`, a mirror image with probability 1/2.

    The whole batch gets the same transform. Each call takes three numbers from the generator, whatever it returns.
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


def to_range(images: Images) -> Images:
    """Return the images clipped to [0, 1], with a straight-through gradient (Bengio et al. 2013).

    A plain clamp has no gradient outside the range, so a perturbation that has left it could not return.
    """
    return images + (images.clamp(0, 1) - images).detach()


def mirror(images: Images) -> Images:
    """Return the images with left and right swapped."""
    return images.flip(-1)


def through_file(images: Images, codec: Codec) -> Images:
    """Return the images as a reader of their file decodes them, with a straight-through gradient."""
    stored = torch.cat([to_float(codec.stored(to_uint8(one[None]))) for one in images.detach()]).to(images)
    return stored + (images - images.detach())


def jpeg(images: Images, quality: int) -> Images:
    """Return the images after Pillow's JPEG encoder and decoder, with a straight-through gradient.

    Straight-through estimator: Bengio et al. 2013. Values outside [0, 1] are clipped.
    """
    stored = torch.cat([_stored(one[None], quality) for one in images.detach()]).to(images)
    return stored + (images - images.detach())


def _stored(image: Images, quality: int) -> Images:
    with io.BytesIO() as file:
        Image.fromarray(to_uint8(image)).save(file, "JPEG", quality=quality)
        return to_float(np.array(Image.open(file)))


def resize(images: Images, scale: float) -> Images:
    """Return the images shrunk by `scale` and enlarged again: bilinear with antialiasing, as in Pillow."""
    height, width = images.shape[-2:]
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    shrunk = functional.interpolate(images, small, mode="bilinear", antialias=True)
    return functional.interpolate(shrunk, (height, width), mode="bilinear", antialias=True)


def blur(images: Images, sigma: float) -> Images:
    """Return the images after a Gaussian blur of `sigma` pixels (0: unchanged), with edge pixels repeated outside."""
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
