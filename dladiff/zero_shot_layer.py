"""Layer 2, Algorithm 2: the perturbation against identity encoders, one face of one photo at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.config import ZeroShotConfig
from dladiff.faces import Face, alignment_matrix, inverse, warp
from dladiff.identity import IdentityEncoder
from dladiff.pgd import direction
from dladiff.pixels import Images

CROP = 112
Matrix = NDArray[np.float64]
"""2 x 3 affine matrix from photo pixels to the aligned crop."""
Similarity = Callable[[Tensor], float]
"""Highest cosine of the optimised encoders on a whole photo `1 3 h w`, read as an attacker reads it."""


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


class Canvas(Protocol):
    """Where a perturbation lives: its size, its place in the aligned crop, and its way into the photo."""

    shape: tuple[int, int]

    def align(self, delta: Tensor, matrices: Matrix) -> Tensor:
        """Return the perturbation as the crops of these alignment matrices (k x 2 x 3) see it, `k 3 112 112`."""

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

    def align(self, delta: Tensor, matrices: Matrix) -> Tensor:
        """Sample the grid directly: photo = to_photo(grid), crop = matrix(photo)."""
        chained = np.stack([_compose(m, self.to_photo) for m in matrices])
        return warp(delta.expand(len(chained), -1, -1, -1), _tensor(chained, delta), CROP)

    def paste(self, delta: Tensor) -> Tensor:
        """Bilinear upsampling: a convex mix, so the bound holds."""
        return functional.interpolate(delta, self.size, mode="bilinear")


class AlignedCanvas:
    """The paper's space: the perturbation is added to the aligned crop and warped back at the end."""

    shape = (CROP, CROP)

    def __init__(self, box: Box, matrix: Matrix) -> None:
        self.box = box
        back = inverse(matrix)
        self.to_box = back - np.array([[0, 0, box.x0], [0, 0, box.y0]])

    def align(self, delta: Tensor, matrices: Matrix) -> Tensor:
        """The same perturbation on every crop."""
        return delta.expand(len(matrices), -1, -1, -1)

    def paste(self, delta: Tensor) -> Tensor:
        """Inverse warp into the box."""
        height, width = self.box.y1 - self.box.y0, self.box.x1 - self.box.x0
        return warp(delta, _tensor(self.to_box[None], delta), max(height, width))[..., :height, :width]


def perturb_face(
    photo: Images,
    face: Face,
    targets: Sequence[Tensor],
    encoders: Sequence[IdentityEncoder],
    config: ZeroShotConfig,
    generator: Generator,
    similarity: Similarity,
) -> tuple[Tensor, Box, int]:
    """Algorithm 2: perturb one face of `photo` (`1 3 h w`, layer 1 already in it).

    `targets` are the clean face's embeddings `1 d`, one an encoder. Returns the perturbation in the box, the box,
    and the steps taken. The loop ends when `similarity` of the pasted, rounded photo is at most `ths`.
    """
    matrix = alignment_matrix(face.landmarks)
    box = Box.of(face, photo.shape[-2], photo.shape[-1])
    canvas: Canvas = (ImageCanvas if config.space == "image" else AlignedCanvas)(box, matrix)
    weights = config.weights or (1 / len(encoders),) * len(encoders)
    delta = torch.zeros(1, 3, *canvas.shape, device=photo.device)
    window, offset = _window(photo, matrix)
    floor = config.ths - config.margin
    for step in range(config.max_steps):
        matrices = jitter(matrix, config, generator, config.draws)
        seen = warp(window.expand(len(matrices), -1, -1, -1), _tensor(_shift(matrices, offset), photo), CROP)
        point = delta.detach().requires_grad_(True)
        crops = (seen + canvas.align(point, matrices)).clamp(0, 1)
        cosines = [
            functional.cosine_similarity(encoder(crops), target)
            for encoder, target in zip(encoders, targets, strict=True)
        ]
        floored = [c.mean().clamp_min(floor) for c in cosines]
        loss = 1 - torch.stack([w * c for w, c in zip(weights, floored, strict=True)]).sum()
        (slope,) = torch.autograd.grad(loss, point)
        low = max(float(c.detach().mean()) for c in cosines) <= config.ths
        if low and step % config.check_every == 0:
            patch = canvas.paste(delta).clamp(-config.eta, config.eta)
            if similarity(pasted(photo, patch, box)) <= config.ths:
                return patch, box, step
            floor -= config.margin  # low on these crops, not yet on the photo: pull further
        delta = (delta + config.step * direction(slope, "sign")).clamp(-config.eta, config.eta).detach()
    return canvas.paste(delta).clamp(-config.eta, config.eta), box, config.max_steps


def jitter(matrix: Matrix, config: ZeroShotConfig, generator: Generator, count: int) -> Matrix:
    """Draw alignment matrices, count x 2 x 3: relative noise about the crop's centre, a shift in crop pixels."""
    noise = torch.randn(count, 2, 3, generator=generator, dtype=torch.float64).numpy()
    linear = np.eye(2) + config.linear_noise * noise[..., :2]
    centre = np.full(2, (CROP - 1) / 2)
    shift = centre - linear @ centre + config.shift_noise * noise[..., 2]
    about = np.concatenate([linear, shift[..., None]], axis=-1)
    return np.stack([_compose(a, matrix) for a in about])


def pasted(photo: Images, patch: Tensor, box: Box) -> Images:
    """Return the photo with the patch added inside the box, in [0, 1]."""
    out = photo.clone()
    out[..., box.y0 : box.y1, box.x0 : box.x1] += patch
    return out.clamp(0, 1)


def _window(photo: Images, matrix: Matrix) -> tuple[Images, tuple[int, int]]:
    """Cut the part of the photo that any jittered crop can read: a large photo costs no more than a small one."""
    corners = np.array([[0, 0, 1], [CROP, 0, 1], [CROP, CROP, 1], [0, CROP, 1]]) @ inverse(matrix).T
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
