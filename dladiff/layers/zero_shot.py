"""Layer 2 (Algorithm 2): the perturbation of one face against identity encoders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.codec import BLOCK, PNG, Codec
from dladiff.core.pixels import Images
from dladiff.core.transforms import Transform, draw_transform, mirror, through_file, to_range
from dladiff.faces.detect import CROP, Face, Matrix, inverse, warp
from dladiff.faces.encoder import IdentityEncoder
from dladiff.settings.schema import ZeroShotConfig

Redetection = Callable[[Tensor], Sequence[float]]
"""Returns each optimised encoder's highest cosine on a whole photo `1 3 h w` after re-detecting the face."""


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
        chained = np.stack([_compose(m, self.to_photo) for m in matrices])
        return warp(delta.expand(len(chained), -1, -1, -1), _tensor(chained, delta), side)

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
        self.to_box = _compose(inverse(self.to_photo), inverse(matrix))

    def align(self, delta: Tensor, matrices: Matrix, side: int = CROP) -> Tensor:
        """Return crops of the perturbation pasted into the box."""
        chained = np.stack([_compose(m, self.to_photo) for m in matrices])
        return warp(self.paste(delta).expand(len(chained), -1, -1, -1), _tensor(chained, delta), side)

    def paste(self, delta: Tensor) -> Tensor:
        """Return the perturbation after the inverse warp into the box."""
        height, width = self.size
        return warp(delta, _tensor(self.to_box[None], delta), max(height, width))[..., :height, :width]

    def bounds(self, face: Images) -> tuple[Tensor, Tensor]:
        """Return -1 and 1: a rotated cell has no pixels of its own."""
        ones = torch.ones(1, 3, *self.shape, device=face.device)
        return -ones, ones


def perturb_face(  # noqa: PLR0913 - the inputs of Algorithm 2
    photo: Images,
    box: Box,
    bases: Matrix,
    targets: Sequence[Tensor],
    encoders: Sequence[IdentityEncoder],
    config: ZeroShotConfig,
    generator: Generator,
    redetection: Redetection,
    codec: Codec = PNG,
) -> tuple[Tensor, int, list[list[float]]]:
    """Algorithm 2: return the perturbation of one face of `photo` (`1 3 h w`, with layer 1) inside its box.

    `bases` (k x 2 x 3): alignments of the clean face by the detector's passes, the main one first. `targets`: the clean
    face's embeddings at these alignments, `k d` for each encoder. The loop stops when `redetection` of the perturbed
    photo gives every encoder a cosine of at most `config.threshold`. The loss is of the pixels that `codec` stores.
    Also returns the number of steps and each encoder's mean cosine at each of them.
    """
    image_grid = config.space == "image"
    grid: DeltaGrid = ImageGrid(box, half_crop_pixel(bases[0])) if image_grid else AlignedGrid(box, bases[0])
    weights = config.encoder_weights or (1 / len(encoders),) * len(encoders)
    delta = torch.zeros(1, 3, *grid.shape, device=photo.device)
    view = FaceView(photo, bases, box, grid, BLOCK if codec.lossy else 1)
    low, high = grid.bounds(photo[..., box.y0 : box.y1, box.x0 : box.x1])
    low, high = low.clamp_min(-config.eta), high.clamp_max(config.eta)
    floors = [config.threshold - config.margin] * len(encoders)
    history: list[list[float]] = []
    for step in range(config.max_steps):
        chosen = (step * config.draws + np.arange(config.draws)) % len(bases)  # each base in turn
        matrices = jitter(bases[chosen], config.linear_noise, config.shift_noise, generator)
        augmentation = draw_augmentation(config.eot, generator, codec)
        point = delta.detach().requires_grad_(True)
        crops = {side: augmentation(view, point, matrices, side) for side in {encoder.crop for encoder in encoders}}
        cosines = [
            (encoder(crops[encoder.crop]) * target[chosen]).sum(1).mean()
            for encoder, target in zip(encoders, targets, strict=True)
        ]
        history.append([float(c.detach()) for c in cosines])
        recent = np.mean(history[-config.check_every :], axis=0)
        if step % config.check_every == 0 and max(recent) <= config.threshold:
            patch = grid.paste(delta).clamp(-config.eta, config.eta)
            measured = redetection(pasted(photo, patch, box))
            if max(measured) <= config.threshold:
                return patch, step, history
            floors = [floor(worst, mean, config) for worst, mean in zip(measured, recent, strict=True)]
        (gradient,) = torch.autograd.grad(objective(cosines, floors, weights), point)
        if codec.grey:
            gradient = gradient.mean(1, keepdim=True).expand_as(gradient)
        delta = (delta + config.step_size * gradient.sign()).clamp(low, high).detach()
    return grid.paste(delta).clamp(-config.eta, config.eta), config.max_steps, history


def objective(cosines: Sequence[Tensor], floors: Sequence[float], weights: Sequence[float]) -> Tensor:
    """Eq. 10: return 1 - sum of w * max(cosine, floor), which layer 2 ascends; no gradient below an encoder's floor."""
    floored = [c.clamp_min(floor) for c, floor in zip(cosines, floors, strict=True)]
    return 1 - torch.stack([w * c for w, c in zip(weights, floored, strict=True)]).sum()


def floor(worst: float, mean: float, config: ZeroShotConfig) -> float:
    """Return the cosine below which an encoder gets no gradient: threshold - margin - (worst re-detection - mean)."""
    return config.threshold - config.margin - max(0.0, worst - mean)


def jitter(matrices: Matrix, linear_noise: float, shift_noise: float, generator: Generator) -> Matrix:
    """Return k alignments (k x 2 x 3) with noise: relative, about the crop's centre, and a shift in crop pixels."""
    noise = torch.randn(len(matrices), 2, 3, generator=generator, dtype=torch.float64).numpy()
    linear = np.eye(2) + linear_noise * noise[..., :2]
    centre = np.full(2, (CROP - 1) / 2)
    shift = centre - linear @ centre + shift_noise * noise[..., 2]
    about = np.concatenate([linear, shift[..., None]], axis=-1)
    return np.stack([_compose(a, m) for a, m in zip(about, matrices, strict=True)])


def enlarged(matrices: Matrix, side: int) -> Matrix:
    """Return the alignments scaled to crops of `side` pixels, like InsightFace's norm_crop."""
    return matrices * (side / CROP)


def pasted(photo: Images, patch: Tensor, box: Box) -> Images:
    """Return the photo with the patch added inside the box, clipped to [0, 1]."""
    out = photo.clone()
    out[..., box.y0 : box.y1, box.x0 : box.x1] += patch
    return out.clamp(0, 1)


class FaceView:
    """Aligned crops of one perturbed face, computed from the part of the photo that crops can reach (the window)."""

    def __init__(self, photo: Images, bases: Matrix, box: Box, grid: DeltaGrid, block: int = 1) -> None:
        """`block`: side of the encoder's blocks; the window begins at one, so that its JPEG has the photo's blocks."""
        self.window, self.offset = _window(photo, bases, block)
        self.box, self.grid = box, grid

    def align(self, picture: Images, matrices: Matrix, side: int) -> Images:
        """Return crops `k 3 s s` of an image of the window's size."""
        moved = _tensor(_shift(enlarged(matrices, side), self.offset), picture)
        return warp(picture.expand(len(matrices), -1, -1, -1), moved, side)

    def plain(self, delta: Tensor, matrices: Matrix, side: int) -> Images:
        """Return crops `k 3 s s`; window and perturbation are cropped separately, since cropping is linear.

        Clipping to [0, 1] is not linear. What it changes is added as a constant: a straight-through gradient.
        """
        crops = self.align(self.window, matrices, side) + self.grid.align(delta, enlarged(matrices, side), side)
        with torch.no_grad():
            perturbed = self.window + self._patch(delta)
            clipped = perturbed.clamp(0, 1) - perturbed
        return crops + self.align(clipped, matrices, side) if bool(clipped.any()) else crops

    def transformed(self, delta: Tensor, transform: Transform, matrices: Matrix, side: int) -> Images:
        """Return crops `k 3 s s` of the perturbed window after a transform of its pixels."""
        return self.align(transform(to_range(self.window + self._patch(delta))), matrices, side)

    def _patch(self, delta: Tensor) -> Tensor:
        """Return the perturbation in the window's pixels."""
        (x0, y0), (height, width) = self.offset, self.window.shape[-2:]
        margins = (self.box.x0 - x0, x0 + width - self.box.x1, self.box.y0 - y0, y0 + height - self.box.y1)
        return functional.pad(self.grid.paste(delta), margins)  # a negative margin crops


def draw_augmentation(
    eot: bool, generator: Generator, codec: Codec = PNG
) -> Callable[[FaceView, Tensor, Matrix, int], Images]:
    """Return the augmentation of one step: none, or (`eot`) a random transform, mirrored with probability 1/2.

    The crop is mirrored instead of the photo, because an attacker aligns the face after mirroring the photo.
    """
    if not eot and not codec.lossy:
        return lambda view, delta, matrices, side: view.plain(delta, matrices, side)

    def stored(images: Images) -> Images:
        return through_file(images, codec) if codec.lossy else images

    if not eot:
        return lambda view, delta, matrices, side: view.transformed(delta, stored, matrices, side)
    drawn = draw_transform(generator, mirrored=False)

    def transform(images: Images) -> Images:
        return drawn(stored(images))

    mirrored = bool(torch.rand((), generator=generator) < 0.5)

    def augmentation(view: FaceView, delta: Tensor, matrices: Matrix, side: int) -> Images:
        crops = view.transformed(delta, transform, matrices, side)
        return mirror(crops) if mirrored else crops

    return augmentation


def _window(photo: Images, bases: Matrix, block: int) -> tuple[Images, tuple[int, int]]:
    """Return the part of the photo that jittered crops can reach, and its top left (x, y), multiples of `block`."""
    square = np.array([[0, 0, 1], [CROP, 0, 1], [CROP, CROP, 1], [0, CROP, 1]])
    corners = np.concatenate([square @ inverse(base).T for base in bases])
    margin = 0.25 * (corners.max(0) - corners.min(0)) + 2
    low, high = corners.min(0) - margin, corners.max(0) + margin
    x0, y0 = (max(0, int(v)) // block * block for v in low)
    return photo[..., y0 : max(y0 + 1, int(high[1])), x0 : max(x0 + 1, int(high[0]))], (x0, y0)


def _compose(outer: Matrix, inner: Matrix) -> Matrix:
    return np.concatenate([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2:] + outer[:, 2:]], axis=1)


def _shift(matrices: Matrix, offset: tuple[int, int]) -> Matrix:
    move = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], dtype=np.float64)
    return np.stack([_compose(m, move) for m in matrices])


def _tensor(matrices: Matrix, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrices)).to(like.device, like.dtype)
