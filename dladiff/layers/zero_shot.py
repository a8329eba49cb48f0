"""Layer 2, Algorithm 2: the perturbation against identity encoders, one face of one photo at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.pgd import Momentum, direction
from dladiff.core.pixels import Images
from dladiff.core.transforms import Transform, draw_transform, mirror
from dladiff.faces.detect import CROP, Face, Matrix, inverse, warp
from dladiff.faces.encoder import IdentityEncoder
from dladiff.settings.schema import ZeroShotConfig

Reading = Callable[[Tensor], Sequence[float]]
"""Highest cosine of each optimised encoder on a whole photo `1 3 h w`, read as an attacker reads it."""


@dataclass(frozen=True)
class Box:
    """The whole pixels inside a detected box: the only pixels that layer 2 of this face may change."""

    x0: int
    y0: int
    x1: int
    y1: int

    @classmethod
    def of(cls, face: Face, height: int, width: int) -> "Box":
        """Round a face's box inwards and clip it to the photo."""
        x0, y0, x1, y1 = face.box
        left, top = max(0, int(np.ceil(x0))), max(0, int(np.ceil(y0)))
        return cls(left, top, max(left + 1, min(width, int(x1))), max(top + 1, min(height, int(y1))))

    def overlaps(self, other: "Box") -> bool:
        """Tell whether two boxes share a pixel."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


class Canvas(Protocol):
    """Where a perturbation lives: its size, its place in the aligned crop, and its way into the photo."""

    shape: tuple[int, int]

    def align(self, delta: Tensor, matrices: Matrix, side: int = CROP) -> Tensor:
        """Return the perturbation as crops of `side` pixels see it through these matrices (k x 2 x 3), `k 3 s s`."""

    def paste(self, delta: Tensor) -> Tensor:
        """Return the perturbation in the pixels of the face's box, `1 3 y1-y0 x1-x0`."""


class ImageCanvas:
    """The photo's own pixels inside the box, on a grid of about half a crop pixel.

    A coarser grid leaves hard faces above the stop rule; a finer one carries only what the alignment's sampling skips.
    """

    def __init__(self, box: Box, matrix: Matrix) -> None:
        height, width = box.y1 - box.y0, box.x1 - box.x0
        pitch = max(1, int(0.5 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))))
        self.box, self.size = box, (height, width)
        self.shape = (-(-height // pitch), -(-width // pitch))
        step = np.array([width / self.shape[1], height / self.shape[0]])
        origin = np.array([box.x0, box.y0]) + step / 2 - 0.5
        self.to_photo = np.array([[step[0], 0, origin[0]], [0, step[1], origin[1]]])

    def align(self, delta: Tensor, matrices: Matrix, side: int = CROP) -> Tensor:
        """Sample the grid directly: photo = to_photo(grid), crop = matrix(photo)."""
        chained = np.stack([_compose(m, self.to_photo) for m in matrices])
        return warp(delta.expand(len(chained), -1, -1, -1), _tensor(chained, delta), side)

    def paste(self, delta: Tensor) -> Tensor:
        """Bilinear upsampling: a convex mix, so the bound holds."""
        return functional.interpolate(delta, self.size, mode="bilinear")


class AlignedCanvas:
    """The paper's space: the perturbation lies on the grid of the aligned crop and is warped back into the photo.

    The loss sees it after that way back: what the inverse warp takes away, the loop then knows and puts elsewhere.
    """

    shape = (CROP, CROP)

    def __init__(self, box: Box, matrix: Matrix) -> None:
        self.size = (box.y1 - box.y0, box.x1 - box.x0)
        self.to_photo = np.array([[1.0, 0, box.x0], [0, 1, box.y0]])
        self.to_box = _compose(inverse(self.to_photo), inverse(matrix))

    def align(self, delta: Tensor, matrices: Matrix, side: int = CROP) -> Tensor:
        """Into the box, and from there into each crop."""
        chained = np.stack([_compose(m, self.to_photo) for m in matrices])
        return warp(self.paste(delta).expand(len(chained), -1, -1, -1), _tensor(chained, delta), side)

    def paste(self, delta: Tensor) -> Tensor:
        """Inverse warp into the box."""
        height, width = self.size
        return warp(delta, _tensor(self.to_box[None], delta), max(height, width))[..., :height, :width]


def perturb_face(
    photo: Images,
    box: Box,
    bases: Matrix,
    targets: Sequence[Tensor],
    encoders: Sequence[IdentityEncoder],
    config: ZeroShotConfig,
    generator: Generator,
    reading: Reading,
) -> tuple[Tensor, int, list[list[float]]]:
    """Algorithm 2: perturb one face of `photo` (`1 3 h w`, layer 1 already in it) inside its box.

    `bases` (k x 2 x 3) are the alignments that detectors give the clean face, the main one first; `targets` its
    embeddings through each of them, `k d` for every encoder. Returns the perturbation in the box, the steps taken, and
    each encoder's mean cosine at each of them. The loop ends when every encoder's `reading` of the pasted photo is at
    most `ths`.
    """
    canvas: Canvas = (ImageCanvas if config.space == "image" else AlignedCanvas)(box, bases[0])
    weights = config.weights or (1 / len(encoders),) * len(encoders)
    delta = torch.zeros(1, 3, *canvas.shape, device=photo.device)
    step_of = Momentum(config.momentum, "sign") if config.momentum else partial(direction, kind="sign")
    scene = _Scene(photo, bases, box, canvas)
    floors = [config.ths - config.margin] * len(encoders)
    seen: list[list[float]] = []
    for step in range(config.max_steps):
        turn = (step * config.draws + np.arange(config.draws)) % len(bases)
        matrices = jitter(bases[turn], config.linear_noise, config.shift_noise, generator)
        look = _drawn_look(config.robust, generator)
        point = delta.detach().requires_grad_(True)
        crops = {side: look(scene, point, matrices, side) for side in {encoder.crop for encoder in encoders}}
        cosines = [
            (encoder(crops[encoder.crop]) * target[turn]).sum(1).mean()
            for encoder, target in zip(encoders, targets, strict=True)
        ]
        seen.append([float(c.detach()) for c in cosines])
        levels = np.mean(seen[-config.check_every :], axis=0)
        if step % config.check_every == 0 and max(levels) <= config.ths:
            patch = canvas.paste(delta).clamp(-config.eta, config.eta)
            found = reading(pasted(photo, patch, box))
            if max(found) <= config.ths:
                return patch, step, seen
            floors = [_floor(f, level, config) for f, level in zip(found, levels, strict=True)]
        now = shares(weights, levels, floors) if config.weighting == "adaptive" else weights
        (slope,) = torch.autograd.grad(objective(cosines, floors, now), point)
        delta = (delta + config.step * step_of(slope)).clamp(-config.eta, config.eta).detach()
    return canvas.paste(delta).clamp(-config.eta, config.eta), config.max_steps, seen


def objective(cosines: Sequence[Tensor], floors: Sequence[float], weights: Sequence[float]) -> Tensor:
    """Eq. 10, what layer 2 ascends: 1 - sum of w * cosine, where a cosine below its floor no longer counts."""
    floored = [c.clamp_min(floor) for c, floor in zip(cosines, floors, strict=True)]
    return 1 - torch.stack([w * c for w, c in zip(weights, floored, strict=True)]).sum()


def shares(weights: Sequence[float], levels: Sequence[float], floors: Sequence[float]) -> list[float]:
    """Adaptive weights: each encoder's own times how far its mean cosine lies above its floor, of sum 1.

    Where none lies above its floor the weights are as given.
    """
    excess = [w * max(0.0, float(c) - f) for w, c, f in zip(weights, levels, floors, strict=True)]
    return [e / sum(excess) for e in excess] if sum(excess) else list(weights)


def _floor(found: float, level: float, config: ZeroShotConfig) -> float:
    """Where an encoder stops pulling: as far below `ths` as the worst reading lies above the mean of the draws."""
    return config.ths - config.margin - max(0.0, found - level)


def jitter(matrices: Matrix, linear_noise: float, shift_noise: float, generator: Generator) -> Matrix:
    """Draw one matrix about each of k x 2 x 3: relative noise about the crop's centre, a shift in crop pixels."""
    noise = torch.randn(len(matrices), 2, 3, generator=generator, dtype=torch.float64).numpy()
    linear = np.eye(2) + linear_noise * noise[..., :2]
    centre = np.full(2, (CROP - 1) / 2)
    shift = centre - linear @ centre + shift_noise * noise[..., 2]
    about = np.concatenate([linear, shift[..., None]], axis=-1)
    return np.stack([_compose(a, m) for a, m in zip(about, matrices, strict=True)])


def enlarged(matrices: Matrix, side: int) -> Matrix:
    """Align to the template enlarged to `side`, as InsightFace's norm_crop does."""
    return matrices * (side / CROP)


def pasted(photo: Images, patch: Tensor, box: Box) -> Images:
    """Return the photo with the patch added inside the box, in [0, 1]."""
    out = photo.clone()
    out[..., box.y0 : box.y1, box.x0 : box.x1] += patch
    return out.clamp(0, 1)


class _Scene:
    """One face as the loss looks at it: the part of the photo that its crops can read, and the perturbation on it."""

    def __init__(self, photo: Images, bases: Matrix, box: Box, canvas: Canvas) -> None:
        self.window, self.offset = _window(photo, bases)
        self.box, self.canvas = box, canvas

    def align(self, picture: Images, matrices: Matrix, side: int) -> Images:
        """Crop a picture of the window's size."""
        moved = _tensor(_shift(enlarged(matrices, side), self.offset), picture)
        return warp(picture.expand(len(matrices), -1, -1, -1), moved, side)

    def plain(self, delta: Tensor, matrices: Matrix, side: int) -> Images:
        """Crop window and perturbation each by itself: the sum of the crops is the crop of the sum."""
        seen = self.align(self.window, matrices, side)
        return (seen + self.canvas.align(delta, enlarged(matrices, side), side)).clamp(0, 1)

    def changed(self, delta: Tensor, transform: Transform, matrices: Matrix, side: int) -> Images:
        """Paste, transform, crop: a transform of the photo knows its pixels, not the crop's."""
        (x0, y0), (height, width) = self.offset, self.window.shape[-2:]
        beside = (self.box.x0 - x0, x0 + width - self.box.x1, self.box.y0 - y0, y0 + height - self.box.y1)
        patch = functional.pad(self.canvas.paste(delta), beside)  # a negative margin cuts off
        return self.align(transform((self.window + patch).clamp(0, 1)), matrices, side)


def _drawn_look(robust: bool, generator: Generator) -> Callable[[_Scene, Tensor, Matrix, int], Images]:
    """Draw how this step looks at the face: as it is, or (robust) transformed and every second time in the mirror.

    The crop is mirrored, not the photo: whoever finds a face in a mirrored photo aligns it there.
    """
    if not robust:
        return lambda scene, delta, matrices, side: scene.plain(delta, matrices, side)
    transform = draw_transform(generator, mirrored=False)
    turned = bool(torch.rand((), generator=generator) < 0.5)

    def look(scene: _Scene, delta: Tensor, matrices: Matrix, side: int) -> Images:
        crops = scene.changed(delta, transform, matrices, side)
        return mirror(crops) if turned else crops

    return look


def _window(photo: Images, bases: Matrix) -> tuple[Images, tuple[int, int]]:
    """Cut the part of the photo that any jittered crop can read: a large photo costs no more than a small one."""
    square = np.array([[0, 0, 1], [CROP, 0, 1], [CROP, CROP, 1], [0, CROP, 1]])
    corners = np.concatenate([square @ inverse(base).T for base in bases])
    margin = 0.25 * (corners.max(0) - corners.min(0)) + 2
    low, high = corners.min(0) - margin, corners.max(0) + margin
    x0, y0 = max(0, int(low[0])), max(0, int(low[1]))
    return photo[..., y0 : max(y0 + 1, int(high[1])), x0 : max(x0 + 1, int(high[0]))], (x0, y0)


def _compose(outer: Matrix, inner: Matrix) -> Matrix:
    return np.concatenate([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2:] + outer[:, 2:]], axis=1)


def _shift(matrices: Matrix, offset: tuple[int, int]) -> Matrix:
    move = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], dtype=np.float64)
    return np.stack([_compose(m, move) for m in matrices])


def _tensor(matrices: Matrix, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrices)).to(like.device, like.dtype)
