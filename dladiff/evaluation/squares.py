"""Squares of a photo that purifiers work on: cut at a model's size, purified, pasted back; and their random streams."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import content_digest, to_float, to_uint8
from dladiff.core.tiles import Square, add_square, covering_squares, cut, face_square
from dladiff.faces.detect import CenterFaceDetector

MAX_SQUARES = 16
"""Most squares that cover a photo: its longer side may be 16 times its shorter one."""


def squares_of(photo: Pixels, region: str, detector: CenterFaceDetector) -> list[Square]:
    """Return the squares that a base model purifies: around the faces (`region` is `face`), or covering the photo."""
    if region == "face":
        return [face_square(face.landmarks) for face in detector.detect(photo)]
    return covering_squares(photo.shape[0], photo.shape[1], MAX_SQUARES)


def in_squares(photo: Pixels, squares: list[Square], side: int, purify: Callable[[Tensor], Tensor]) -> Pixels:
    """Return the photo with each square purified at `side` px; without a square, a copy."""
    return to_uint8(mean_of_squares(to_float(photo), squares, side, purify)) if squares else photo.copy()


def mean_of_squares(x: Tensor, squares: list[Square], side: int, purify: Callable[[Tensor], Tensor]) -> Tensor:
    """Purify each square at `side` px and paste it back; overlaps are averaged, other pixels stay unchanged."""
    total, weight = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for square in squares:
        purified = purify(cut(x, square, side))
        back = functional.interpolate(purified, (square.side,) * 2, mode="bicubic", antialias=True)
        add_square(total, back.clamp(0, 1), square)
        add_square(weight, torch.ones_like(back[:, :1]), square)
    return torch.where(weight > 0, total / weight.clamp_min(1), x)


def seeded(photo: Pixels) -> Generator:
    """Return a random stream seeded by the photo's pixels."""
    return Generator().manual_seed(int.from_bytes(content_digest(photo)[:8], "big") >> 1)
