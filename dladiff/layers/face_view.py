"""What encoders get of a perturbed photo in a step of layer 2."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.codec import PNG, Codec
from dladiff.core.pixels import Images
from dladiff.core.transforms import Transform, draw_transform, mirror, through_file, to_range
from dladiff.faces.cuts import Cut, FaceCut, PhotoCut
from dladiff.faces.detect import CROP, Matrix, inverse, warp
from dladiff.layers.grids import Box, DeltaGrid, on_device, shifted


class FaceView:
    """Cuts of one perturbed photo: aligned crops of a face from the part that crops can reach (the window), and others.

    Cuts of the whole photo are the same at any alignment: `1 3 s s`.
    """

    def __init__(
        self,
        photo: Images,
        bases: Matrix,
        box: Box,
        grid: DeltaGrid,
        block: int = 1,
        cuts: Sequence[Cut] = (FaceCut(),),
    ) -> None:
        """`block`: side of the encoder's blocks; the window begins at one, so that its JPEG has the photo's blocks.

        `cuts`: those that will be asked for.
        """
        self.window, self.offset = _window(photo, bases, block, [c for c in cuts if isinstance(c, FaceCut) and c.ffhq])
        self.box, self.grid, self.size = box, grid, photo.shape[-2:]
        whole = [cut for cut in cuts if isinstance(cut, PhotoCut)]
        self.photo = photo if whole else None
        self.clean = {cut: cut.crop(photo) for cut in whole}

    def align(self, picture: Images, matrices: Matrix, cut: FaceCut) -> Images:
        """Return crops `k 3 s s` of an image of the window's size."""
        return warp(picture.expand(len(matrices), -1, -1, -1), self._placed(matrices, cut, picture), cut.side)

    def plain(self, delta: Tensor, matrices: Matrix, cut: Cut) -> Images:
        """Return crops `k 3 s s`; window and perturbation are cropped separately, since cropping is linear.

        Clipping to [0, 1] is not linear. What it changes is added as a constant: a straight-through gradient.
        """
        if isinstance(cut, PhotoCut):
            return self._whole(delta, cut)
        crops = self.align(self.window, matrices, cut) + self.grid.align(delta, cut.matrices(matrices), cut.side)
        with torch.no_grad():
            perturbed = self.window + self._patch(delta)
            clipped = perturbed.clamp(0, 1) - perturbed
        crops = crops + self.align(clipped, matrices, cut) if bool(clipped.any()) else crops
        return self._bordered(crops, matrices, cut)

    def transformed(self, delta: Tensor, transform: Transform, matrices: Matrix, cut: Cut) -> Images:
        """Return crops `k 3 s s` of the perturbed window after a transform of its pixels."""
        if isinstance(cut, PhotoCut):
            assert self.photo is not None, "this cut was not announced"
            (height, width), box = self.size, self.box
            margins = (box.x0, width - box.x1, box.y0, height - box.y1)
            whole = self.photo + functional.pad(self.grid.paste(delta), margins)
            return cut.crop(transform(to_range(whole)))
        crops = self.align(transform(to_range(self.window + self._patch(delta))), matrices, cut)
        return self._bordered(crops, matrices, cut)

    def _whole(self, delta: Tensor, cut: PhotoCut) -> Images:
        """Return the cut of the whole photo, from the clean one's and the perturbation's share."""
        assert self.photo is not None, "this cut was not announced"
        box, patch = self.box, self.grid.paste(delta)
        with torch.no_grad():
            perturbed = self.photo[..., box.y0 : box.y1, box.x0 : box.x1] + patch
            clipped = perturbed.clamp(0, 1) - perturbed
        return self.clean[cut] + cut.part(patch + clipped, self.size, (box.x0, box.y0))

    def _bordered(self, crops: Images, matrices: Matrix, cut: FaceCut) -> Images:
        """Return the crops with the colour that the cut has outside the photo."""
        if not cut.ffhq:
            return crops
        return cut.bordered(crops, self.window.shape[-2:], self._placed(matrices, cut, crops))

    def _placed(self, matrices: Matrix, cut: FaceCut, like: Tensor) -> Tensor:
        """Return alignments from the window's pixels to a cut."""
        return on_device(shifted(cut.matrices(matrices), self.offset), like)

    def _patch(self, delta: Tensor) -> Tensor:
        """Return the perturbation in the window's pixels."""
        (x0, y0), (height, width) = self.offset, self.window.shape[-2:]
        margins = (self.box.x0 - x0, x0 + width - self.box.x1, self.box.y0 - y0, y0 + height - self.box.y1)
        return functional.pad(self.grid.paste(delta), margins)  # a negative margin crops


def draw_augmentation(
    eot: bool, generator: Generator, codec: Codec = PNG
) -> Callable[[FaceView, Tensor, Matrix, Cut], Images]:
    """Return the augmentation of one step: none, or (`eot`) a random transform, mirrored with probability 1/2.

    The crop is mirrored instead of the photo, because an attacker aligns the face after mirroring the photo.
    """
    if not eot and not codec.lossy:
        return lambda view, delta, matrices, cut: view.plain(delta, matrices, cut)

    def stored(images: Images) -> Images:
        return through_file(images, codec) if codec.lossy else images

    if not eot:
        return lambda view, delta, matrices, cut: view.transformed(delta, stored, matrices, cut)
    drawn = draw_transform(generator, mirrored=False)

    def transform(images: Images) -> Images:
        return drawn(stored(images))

    mirrored = bool(torch.rand((), generator=generator) < 0.5)

    def augmentation(view: FaceView, delta: Tensor, matrices: Matrix, cut: Cut) -> Images:
        crops = view.transformed(delta, transform, matrices, cut)
        return mirror(crops) if mirrored else crops

    return augmentation


def _window(photo: Images, bases: Matrix, block: int, wider: Sequence[FaceCut]) -> tuple[Images, tuple[int, int]]:
    """Return the part of the photo that jittered crops can reach, and its top left (x, y), multiples of `block`.

    `wider`: cuts that reach beyond InsightFace's crop.
    """
    square = np.array([[0, 0, 1], [CROP, 0, 1], [CROP, CROP, 1], [0, CROP, 1]])
    corners = np.concatenate([square @ inverse(base).T for base in bases])
    for cut in wider:
        outer = square * np.array([cut.side / CROP, cut.side / CROP, 1])
        corners = np.concatenate([corners, *(outer @ inverse(matrix).T for matrix in cut.matrices(bases))])
    margin = 0.25 * (corners.max(0) - corners.min(0)) + 2
    low, high = corners.min(0) - margin, corners.max(0) + margin
    x0, y0 = (max(0, int(v)) // block * block for v in low)
    return photo[..., y0 : max(y0 + 1, int(high[1])), x0 : max(x0 + 1, int(high[0]))], (x0, y0)
