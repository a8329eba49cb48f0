"""Projected gradient ascent: the one loop. Every method is a loss and a schedule over it."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
"""Maps x + delta to a scalar."""
Slope = Callable[[Tensor], Tensor]
"""Maps x + delta to the gradient of what the loop ascends."""


def direction(gradient: Tensor, kind: str) -> Tensor:
    """Turn a gradient `b ...` into a step of unit size: `sign`, `l2` (each image's RMS is 1), or `raw`."""
    if kind == "sign":
        return gradient.sign()
    if kind == "l2":
        rms = gradient.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)
        return gradient / rms.view(-1, *([1] * (gradient.dim() - 1)))
    return gradient


class Momentum:
    """A direction that remembers: gradients, each divided by its mean size, add up (MI-FGSM, Dong et al. 2018)."""

    def __init__(self, decay: float, kind: str) -> None:
        self.decay, self.kind = decay, kind
        self.velocity: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the step of unit size for the sum so far."""
        size = gradient.flatten(1).abs().mean(1).clamp_min(1e-20)
        unit = gradient / size.view(-1, *([1] * (gradient.dim() - 1)))
        self.velocity = unit if self.velocity is None else self.decay * self.velocity + unit
        return direction(self.velocity, self.kind)


def slope_of(loss: Loss) -> Slope:
    """Return a loss's gradient as a function."""

    def slope(point: Tensor) -> Tensor:
        point = point.detach().requires_grad_(True)
        (found,) = torch.autograd.grad(loss(point), point)
        return found

    return slope


def pgd(
    x: Tensor,
    delta: Tensor,
    slope: Slope,
    *,
    allowed: Callable[[Tensor], Tensor],
    step: float,
    steps: int,
    gradient: str | Momentum = "sign",
) -> Tensor:
    """Take `steps` projected steps along `slope(x + delta)` and return the new delta.

    `x`, `delta`: same shape, [0, 1] units. `allowed` brings a perturbation back to what is allowed (`ball.around`).
    Source: Madry et al. 2018; METHOD "PGD step".
    """
    for _ in range(steps):
        found = slope(x + delta)
        change = gradient(found) if isinstance(gradient, Momentum) else direction(found, gradient)
        delta = allowed(delta + step * change).detach()
    return delta
