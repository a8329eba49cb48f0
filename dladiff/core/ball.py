"""Projection of a perturbation onto what is allowed: an L-inf ball, the pixel range, and, where asked, a PSNR."""

from collections.abc import Callable
from functools import partial

from torch import Tensor


def project(delta: Tensor, x: Tensor, eta: float, least_psnr: float = 0.0) -> Tensor:
    """Return the perturbation with |delta| <= eta, x + delta in [0, 1] and, unless 0, a PSNR of `least_psnr` or more.

    `delta`, `x`: same shape `b ...`, [0, 1] units, x itself in [0, 1]; the PSNR (dB) is each image's own. Clipping to
    both boxes gives the nearest point; what then lies outside the L2 ball of that PSNR is drawn back along its ray, and
    so stays inside the boxes.
    """
    inside = (x + delta.clamp(-eta, eta)).clamp(0, 1) - x
    if least_psnr == 0:
        return inside
    rms = inside.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)
    scale = (10 ** (-least_psnr / 20) / rms).clamp_max(1)
    return inside * scale.view(-1, *([1] * (inside.dim() - 1)))


def around(x: Tensor, eta: float, least_psnr: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Return the projection of perturbations of these photos."""
    return partial(project, x=x, eta=eta, least_psnr=least_psnr)
