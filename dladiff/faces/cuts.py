"""What encoders get of a photo: an aligned face, or the whole photo resized. Differentiable in the photo."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dladiff.core.pixels import Images
from dladiff.faces.detect import ARCFACE_TEMPLATE, CROP, Matrix, inverse, similarity, warp

FFHQ_TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
"""Positions of the five landmarks in facexlib's aligned face (FFHQ), 512 px."""
FFHQ_SIDE = 512
FFHQ_BORDER = (132 / 255, 133 / 255, 135 / 255)
"""Colour outside the photo in facexlib's aligned face, RGB in [0, 1]."""
CUBIC = -0.5
"""Parameter of the bicubic filter (Keys 1981), Pillow's and torch's with antialiasing."""


@dataclass(frozen=True)
class FaceCut:
    """An aligned face of `side` x `side` pixels."""

    side: int = CROP
    ffhq: bool = False
    """Whether it is aligned to facexlib's template instead of InsightFace's."""

    def matrices(self, alignments: Matrix) -> Matrix:
        """Return k alignments (2 x 3) to this cut, for alignments to InsightFace's 112 px crop.

        An alignment to facexlib's template is carried over by the similarity that aligns that one to InsightFace's.
        It is exact for landmarks that are facexlib's template, moved, turned and scaled.
        """
        if not self.ffhq:
            return alignments * (self.side / CROP)
        over = inverse(similarity(FFHQ_TEMPLATE * (self.side / FFHQ_SIDE), ARCFACE_TEMPLATE))
        moved = over[:, :2] @ alignments
        moved[..., 2] += over[:, 2]
        return moved

    def crops(self, photo: Images, matrices: Matrix) -> Images:
        """Return crops `k 3 s s` of a photo `1 3 h w` at the alignments that `matrices` returned, k x 2 x 3."""
        placed = torch.from_numpy(np.ascontiguousarray(matrices)).to(photo)
        crops = warp(photo.expand(len(matrices), -1, -1, -1), placed, self.side)
        return self.bordered(crops, photo.shape[-2:], placed) if self.ffhq else crops

    def bordered(self, crops: Images, size: "tuple[int, int] | torch.Size", placed: Tensor) -> Images:
        """Return crops `k 3 s s`, black outside an image of this size (height, width), with facexlib's colour there.

        `placed`: the alignments from the image, `k 2 3`.
        """
        with torch.no_grad():
            inside = warp(crops.new_ones(1, 1, *size).expand(len(crops), -1, -1, -1), placed, self.side)
        return crops + (1 - inside) * crops.new_tensor(FFHQ_BORDER)[:, None, None]


@dataclass(frozen=True)
class PhotoCut:
    """The whole photo at `side` x `side` pixels, resized by an antialiased bicubic filter as Pillow does."""

    side: int
    middle: bool
    """Whether the shorter side is resized and the middle cut out (CLIP); else both sides are resized (SigLIP)."""

    def filters(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the matrices `s h` and `s w` whose products with the photo's rows and columns are this cut."""
        scaled = (self.side, self.side)
        if self.middle:
            short = min(height, width)
            scaled = (int(self.side * height / short), int(self.side * width / short))
        rows, columns = (resampling(n, m) for n, m in zip((height, width), scaled, strict=True))
        top, left = ((m - self.side) // 2 for m in scaled)
        return rows[top : top + self.side], columns[left : left + self.side]

    def crop(self, photo: Images) -> Images:
        """Return the cut `1 3 s s` of a photo `1 3 h w`."""
        return self.part(photo, photo.shape[-2:], (0, 0))

    def part(self, image: Images, size: "tuple[int, int] | torch.Size", origin: tuple[int, int]) -> Images:
        """Return what a part `1 3 h w` of a photo of this size (height, width) adds to the photo's cut.

        `origin`: x and y of the part's first pixel. The cut is linear in the photo.
        """
        rows, columns = (f.to(image) for f in self.filters(*size))
        (x0, y0), (height, width) = origin, image.shape[-2:]
        return rows[:, y0 : y0 + height] @ image @ columns[:, x0 : x0 + width].T


Cut = FaceCut | PhotoCut


def cut_of(photo: Images, alignments: Matrix, cut: Cut) -> Images:
    """Return the cuts of a photo `1 3 h w` at k alignments to InsightFace's crop, `k 3 s s`; `1 3 s s` of the whole."""
    return cut.crop(photo) if isinstance(cut, PhotoCut) else cut.crops(photo, cut.matrices(alignments))


@functools.lru_cache(maxsize=16)
def resampling(length: int, target: int) -> Tensor:
    """Return the matrix `target length` of an antialiased bicubic resize; each row sums to 1."""
    scale = length / target
    reach = max(scale, 1.0)
    centres = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = ((torch.arange(length, dtype=torch.float64) + 0.5 - centres) / reach).abs()
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance.square() + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return (weights / weights.sum(1, keepdim=True)).float()
