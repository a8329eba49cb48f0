"""Working squares of layer 1: choose them, cut them out, and bring a perturbation back to the photo's size."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dladiff.core.pixels import Images

TEMPLATE = np.array([[0.3184, 0.3979], [0.6858, 0.3915], [0.5052, 0.6034], [0.3657, 0.7825], [0.6600, 0.7778]])
"""Mean landmarks of the crops the tiny model was trained on, in units of the side (eyes, nose, mouth corners)."""
ROUNDS = 8
"""Iterations of back-projection in `spread`."""


@dataclass(frozen=True)
class Square:
    """A square of a photo in whole pixels; it may extend beyond the photo's edge."""

    x: int
    y: int
    side: int

    def overlaps(self, other: "Square") -> bool:
        """Return whether two squares share a pixel."""
        return (
            self.x < other.x + other.side
            and other.x < self.x + self.side
            and self.y < other.y + other.side
            and other.y < self.y + self.side
        )


def face_square(landmarks: NDArray[np.floating]) -> Square:
    """Return the square that frames five landmarks (5 x 2, pixels) like the tiny model's training crops, unrotated."""
    centred, template = landmarks - landmarks.mean(0), TEMPLATE - TEMPLATE.mean(0)
    side = float(np.sqrt((centred**2).sum() / (template**2).sum()))
    x, y = landmarks.mean(0) - TEMPLATE.mean(0) * side
    return Square(round(float(x)), round(float(y)), max(8, round(side)))


def covering_squares(height: int, width: int, max_squares: int) -> list[Square]:
    """Return the fewest squares of the photo's short side that cover it, evenly spaced; at most `max_squares`."""
    side, long = min(height, width), max(height, width)
    count = min(max_squares, -(-long // side))
    starts = [round(i * (long - side) / max(1, count - 1)) for i in range(count)]
    return [Square(s, 0, side) if width >= height else Square(0, s, side) for s in starts]


def positions(start: int, count: int, length: int) -> Tensor:
    """Return `count` pixel indices from `start` on, clipped to 0..length-1."""
    return torch.arange(start, start + count).clamp(0, length - 1)


def cut(image: Images, square: Square, resolution: int) -> Images:
    """Return a square of `1 3 h w` resized to `1 3 r r`; beyond the photo the edge pixels are repeated."""
    height, width = image.shape[-2:]
    rows, columns = positions(square.y, square.side, height), positions(square.x, square.side, width)
    return shrink(image[..., rows, :][..., columns], resolution)


def shrink(crop: Images, resolution: int) -> Images:
    """Return the crop resized like an attacker's preprocessing: bilinear with antialiasing."""
    return functional.interpolate(crop, (resolution, resolution), mode="bilinear", antialias=True)


def spread(delta: Tensor, square: Square, eta: float) -> Tensor:
    """Return a perturbation `1 3 r r` enlarged to `1 3 side side` so that `shrink` restores it.

    Iterative back-projection (Irani and Peleg 1991), clipped to [-eta, eta]. Plain upsampling would lose the part that
    the attacker's resize averages away.
    """
    size = (square.side, square.side)
    full = functional.interpolate(delta, size, mode="bilinear", antialias=True).clamp(-eta, eta)
    for _ in range(ROUNDS):
        missing = delta - shrink(full, delta.shape[-1])
        full = (full + functional.interpolate(missing, size, mode="bilinear", antialias=True)).clamp(-eta, eta)
    return full


def add_square(total: Tensor, patch: Tensor, square: Square) -> None:
    """Add a patch `1 3 side side` to `total` (`1 3 h w`) in place; pixels outside the photo are dropped."""
    height, width = total.shape[-2:]
    top, left = max(0, square.y), max(0, square.x)
    bottom, right = min(height, square.y + square.side), min(width, square.x + square.side)
    if bottom > top and right > left:
        inside = patch[..., top - square.y : bottom - square.y, left - square.x : right - square.x]
        total[..., top:bottom, left:right] += inside


def retained(wanted: Tensor, found: Tensor) -> float:
    """Return the share of a perturbation that survives resizing: <found, wanted> / <wanted, wanted>."""
    energy = float(wanted.square().sum())
    return float((found * wanted).sum()) / energy if energy else 1.0
