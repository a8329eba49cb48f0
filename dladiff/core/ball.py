"""Projection of a perturbation onto an L-inf ball, the pixel range and, optionally, a minimum PSNR."""

from collections.abc import Callable
from functools import partial

from torch import Tensor


def project(delta: Tensor, x: Tensor, eta: float, min_psnr: float = 0.0) -> Tensor:
    """Return delta projected to |delta| <= eta, x + delta in [0, 1] and, unless 0, a PSNR of at least `min_psnr` dB.

    `delta`, `x`: same shape `b ...`, [0, 1] units; `x` lies in [0, 1]. The PSNR is computed per image. Clipping to both
    boxes gives the nearest point of their intersection. An image outside the L2 ball of the PSNR is then scaled towards
    zero, which keeps it inside the boxes.
    """
    inside = (x + delta.clamp(-eta, eta)).clamp(0, 1) - x
    if min_psnr == 0:
        return inside
    rms = inside.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)
    scale = (10 ** (-min_psnr / 20) / rms).clamp_max(1)
    return inside * scale.view(-1, *([1] * (inside.dim() - 1)))


def around(x: Tensor, eta: float, min_psnr: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Return `project` for the photos `x`, as a function of delta alone."""
    return partial(project, x=x, eta=eta, min_psnr=min_psnr)
