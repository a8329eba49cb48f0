"""The grids on which layer 2 optimises its perturbation of one face, and their maps to crops and to the photo."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dladiff.core.pixels import Images
from dladiff.faces.detect import CROP, Face, Matrix, inverse, warp


@dataclass(frozen=True)
class Box:
    """A detected face's box in whole pixels; layer 2 of this face changes only pixels inside."""

    x0: int
    y0: int
    x1: int
    y1: int

    @classmethod
    def of(cls, face: Face, height: int, width: int) -> "Box":
        """Return the face's box rounded inwards and clipped to the photo, at least 1 x 1."""
        x0, y0, x1, y1 = face.box
        left, top = max(0, int(np.ceil(x0))), max(0, int(np.ceil(y0)))
        return cls(left, top, max(left + 1, min(width, int(x1))), max(top + 1, min(height, int(y1))))

    def overlaps(self, other: "Box") -> bool:
        """Return whether two boxes share a pixel."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


class DeltaGrid(Protocol):
    """The pixel grid of the optimised perturbation, and its mapping to aligned crops and to the photo."""

    shape: tuple[int, int]

    def align(self, delta: Tensor, matrices: Matrix, side: int = CROP) -> Tensor:
        """Return the perturbation warped by k alignments (k x 2 x 3) to crops of `side` pixels, `k 3 s s`."""

    def paste(self, delta: Tensor) -> Tensor:
        """Return the perturbation in the pixels of the face's box, `1 3 y1-y0 x1-x0`."""

    def bounds(self, face: Images) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest useful value of each cell for the photo's box `1 3 y1-y0 x1-x0`.

        A value beyond leaves [0, 1] in every pixel of its cell.
        """


class ImageGrid:
    """A grid over the box in the photo, with a pitch of about half a crop pixel.

    On a coarser grid hard faces stay above the threshold; the alignment's sampling skips the detail of a finer one.
    """

    def __init__(self, box: Box, pitch: int) -> None:
        """`pitch`: pixels from cell to cell."""
        height, width = box.y1 - box.y0, box.x1 - box.x0
        self.box, self.size = box, (height, width)
        self.shape = (-(-height // pitch), -(-width // pitch))
        spacing = np.array([width / self.shape[1], height / self.shape[0]])
        origin = np.array([box.x0, box.y0]) + spacing / 2 - 0.5
        self.to_photo = np.array([[spacing[0], 0, origin[0]], [0, spacing[1], origin[1]]])

    def align(self, delta: Tensor, matrices: Matrix, side: int = CROP) -> Tensor:
        """Return crops sampled directly from the grid: photo = to_photo(grid), crop = matrix(photo)."""
        chained = np.stack([composed(m, self.to_photo) for m in matrices])
        return warp(delta.expand(len(chained), -1, -1, -1), on_device(chained, delta), side)

    def paste(self, delta: Tensor) -> Tensor:
        """Return the perturbation upsampled bilinearly: convex combinations, so the L-inf bound holds."""
        return functional.interpolate(delta, self.size, mode="bilinear")

    def bounds(self, face: Images) -> tuple[Tensor, Tensor]:
        """Return minus the brightest and one minus the darkest pixel of each cell, each channel by itself."""
        return -functional.adaptive_max_pool2d(face, self.shape), 1 + functional.adaptive_max_pool2d(-face, self.shape)


def half_crop_pixel(matrix: Matrix) -> int:
    """Return half a pixel of an aligned crop in whole pixels of the photo, at least 1."""
    return max(1, int(0.5 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))))


class AlignedGrid:
    """The grid of the aligned crop (the paper's space); the perturbation is warped back into the photo.

    The loss is computed after the inverse warp, so that the optimisation accounts for what the warp loses.
    """

    shape = (CROP, CROP)

    def __init__(self, box: Box, matrix: Matrix) -> None:
        self.size = (box.y1 - box.y0, box.x1 - box.x0)
        self.to_photo = np.array([[1.0, 0, box.x0], [0, 1, box.y0]])
        self.to_box = composed(inverse(self.to_photo), inverse(matrix))

    def align(self, delta: Tensor, matrices: Matrix, side: int = CROP) -> Tensor:
        """Return crops of the perturbation pasted into the box."""
        chained = np.stack([composed(m, self.to_photo) for m in matrices])
        return warp(self.paste(delta).expand(len(chained), -1, -1, -1), on_device(chained, delta), side)

    def paste(self, delta: Tensor) -> Tensor:
        """Return the perturbation after the inverse warp into the box."""
        height, width = self.size
        return warp(delta, on_device(self.to_box[None], delta), max(height, width))[..., :height, :width]

    def bounds(self, face: Images) -> tuple[Tensor, Tensor]:
        """Return -1 and 1: a rotated cell has no pixels of its own."""
        ones = torch.ones(1, 3, *self.shape, device=face.device)
        return -ones, ones


def composed(outer: Matrix, inner: Matrix) -> Matrix:
    """Return the matrix 2 x 3 that maps by `inner`, then by `outer`."""
    return np.concatenate([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2:] + outer[:, 2:]], axis=1)


def shifted(matrices: Matrix, offset: tuple[int, int]) -> Matrix:
    """Return alignments of a photo, k x 2 x 3, as those of its part whose top left is `offset` (x, y)."""
    move = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], dtype=np.float64)
    return np.stack([composed(m, move) for m in matrices])


def on_device(matrices: Matrix, like: Tensor) -> Tensor:
    """Return matrices as a tensor of the type and device of another."""
    return torch.from_numpy(np.ascontiguousarray(matrices)).to(like.device, like.dtype)
