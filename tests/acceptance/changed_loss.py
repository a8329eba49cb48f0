"""Changes of the identity loss that `encoder_zoo` compares: warps, cut-outs and neighbourhoods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.ssimulacra2 import Region
from dladiff.faces.cuts import FaceCut
from dladiff.faces.detect import ARCFACE_TEMPLATE
from dladiff.layers import joint
from dladiff.layers.budget import Budget
from dladiff.layers.stop_rule import JITTER_SHARE
from dladiff.layers.zero_shot import draw_augmentation, jitter


@dataclass(frozen=True)
class Loss:
    """Changes of the identity loss, at the draws that have noise on their alignment."""

    warp: float = 0.0
    """Standard deviation of an elastic warp of the crop, pixels of it."""
    cut: int = 0
    """Side of a grey square around a random landmark, pixels of the crop; 0: none."""
    radius: float = 0.0
    """Neighbourhood of the perturbation (MEF, Qiu et al. 2024): each draw is at another point of it, 1/255."""
    inner: float = 0.0
    """Step of each of these points against the last gradient, towards the worst of the neighbourhood, 1/255."""


def elastic(crops: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Return crops `k 3 s s` under smooth random shifts with this standard deviation at 5 x 5 points, pixels."""
    count, side = len(crops), crops.shape[-1]
    shifts = torch.randn(count, 2, 5, 5, generator=generator) * (2 * deviation / side)
    field_ = functional.interpolate(shifts, (side, side), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    plain = functional.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, plain + field_, padding_mode="border", align_corners=False)


def cut_out(crops: Tensor, side: int, generator: Generator) -> Tensor:
    """Return crops `k 3 s s` with a grey square around one of the five landmarks each."""
    kept = torch.ones_like(crops[:, :1])
    which = torch.randint(0, 5, (len(crops),), generator=generator).tolist()
    shifts = torch.randint(-6, 7, (len(crops), 2), generator=generator).tolist()
    for row, (landmark, shift) in enumerate(zip(which, shifts, strict=True)):
        x, y = (int(v) + s - side // 2 for v, s in zip(ARCFACE_TEMPLATE[landmark], shift, strict=True))
        kept[row, :, max(0, y) : y + side, max(0, x) : x + side] = 0
    return crops * kept + 0.5 * (1 - kept)


class Changed(joint._Run):
    """The product's run with a changed identity loss."""

    loss = Loss()

    def _identity(self, face: joint.FaceTask, view: Any, point: Tensor, step: int) -> Tensor:
        config, encoders, loss, draws = self.zero_shot, self.networks.encoders, self.loss, self.config.draws
        turn, chosen = np.divmod(step * draws + np.arange(draws), len(face.bases))
        matrices, noisy = face.bases[chosen].copy(), turn % 2 == 1
        noise = (JITTER_SHARE * config.linear_noise, JITTER_SHARE * config.shift_noise)
        if noisy.any():
            matrices[noisy] = jitter(matrices[noisy], *noise, face.generator)
        augmentation = draw_augmentation(config.eot, face.generator, self.codec)
        crops = augmentation(view, self._points(point, draws, face.generator), matrices, FaceCut())
        rows = torch.from_numpy(noisy)
        if loss.warp and noisy.any():
            crops = torch.where(rows[:, None, None, None], elastic(crops, loss.warp, face.generator), crops)
        if loss.cut and noisy.any():
            crops = torch.where(rows[:, None, None, None], cut_out(crops, loss.cut, face.generator), crops)
        picked = self._picked(face)
        known = list(face.history[-1]) if face.history else [1.0] * len(encoders)
        terms = []
        for i in picked:
            cosines = (encoders[i](crops) * face.targets[i][chosen]).sum(1)
            known[i] = float(cosines.detach().max())
            terms.append((cosines - face.floors[i]).clamp_min(0).mean())
        face.history.append(known)
        return torch.stack(terms).mean() * len(encoders)

    def _points(self, point: Tensor, count: int, generator: Generator) -> Tensor:
        """Return the perturbation, or one neighbour for each draw, `k 3 rows columns`."""
        loss = self.loss
        if not loss.radius:
            return point
        away = torch.rand((count, *point.shape[1:]), generator=generator) * 2 - 1
        near = point + loss.radius / 255 * away
        last = getattr(self, "last", None)
        if last is not None:  # ascends the cosine, which the perturbation descends
            near = near + loss.inner / 255 * last / (last.abs().mean() + 1e-20)
        near.register_hook(self._remember)
        return near

    def _remember(self, gradient: Tensor) -> None:
        self.last = gradient.mean(0, keepdim=True).detach()


class ScoredOnce(Budget):
    """The budget without the second score of a small photo."""

    def __init__(
        self, original: Tensor, regions: Sequence[Region], target: float, colour: float, whole: bool = False
    ) -> None:
        super().__init__(original, regions, target, colour)
