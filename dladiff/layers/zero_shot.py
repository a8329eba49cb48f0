"""Layer 2 (Algorithm 2): the perturbation of one face against identity encoders."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from dladiff.core.codec import BLOCK, PNG, Codec
from dladiff.core.pixels import Images
from dladiff.faces.detect import CROP, Matrix
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers.face_view import FaceView, draw_augmentation
from dladiff.layers.grids import AlignedGrid, Box, DeltaGrid, ImageGrid, composed, half_crop_pixel
from dladiff.settings.schema import ZeroShotConfig

Redetection = Callable[[Tensor], Sequence[float]]
"""Returns each optimised encoder's highest cosine on a whole photo `1 3 h w` after re-detecting the face."""


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
    cuts = list(dict.fromkeys(encoder.cut for encoder in encoders))
    view = FaceView(photo, bases, box, grid, BLOCK if codec.lossy else 1, cuts)
    low, high = grid.bounds(photo[..., box.y0 : box.y1, box.x0 : box.x1])
    low, high = low.clamp_min(-config.eta), high.clamp_max(config.eta)
    floors = [config.threshold - config.margin] * len(encoders)
    history: list[list[float]] = []
    for step in range(config.max_steps):
        chosen = (step * config.draws + np.arange(config.draws)) % len(bases)  # each base in turn
        matrices = jitter(bases[chosen], config.linear_noise, config.shift_noise, generator)
        augmentation = draw_augmentation(config.eot, generator, codec)
        point = delta.detach().requires_grad_(True)
        crops = {cut: augmentation(view, point, matrices, cut) for cut in cuts}
        cosines = [
            (encoder(crops[encoder.cut]) * target[chosen]).sum(1).mean()
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
    return np.stack([composed(a, m) for a, m in zip(about, matrices, strict=True)])


def pasted(photo: Images, patch: Tensor, box: Box) -> Images:
    """Return the photo with the patch added inside the box, clipped to [0, 1]."""
    out = photo.clone()
    out[..., box.y0 : box.y1, box.x0 : box.x1] += patch
    return out.clamp(0, 1)
