"""Projected gradient ascent: the one loop. Every method is a loss and a schedule over it."""

from collections.abc import Callable

import torch
from torch import Tensor

from dladiff.ball import project

Loss = Callable[[Tensor], Tensor]
"""Maps x + delta to a scalar; what the loop ascends."""


def direction(gradient: Tensor, kind: str) -> Tensor:
    """Turn a gradient `b ...` into a step of unit size: `sign`, `l2` (each image's RMS is 1), or `raw`."""
    if kind == "sign":
        return gradient.sign()
    if kind == "l2":
        rms = gradient.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)
        return gradient / rms.view(-1, *([1] * (gradient.dim() - 1)))
    return gradient


def pgd(x: Tensor, delta: Tensor, loss: Loss, *, eta: float, step: float, steps: int, gradient: str = "sign") -> Tensor:
    """Ascend `loss(x + delta)` by `steps` projected steps and return the new delta.

    `x`, `delta`: same shape, [0, 1] units; x is the clean photo, so the ball is always around it.
    Source: Madry et al. 2018; METHOD "PGD step".
    """
    for _ in range(steps):
        point = (x + delta).detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(point), point)
        delta = project(delta + step * direction(slope, gradient), x, eta).detach()
    return delta
