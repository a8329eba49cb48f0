"""Projected gradient ascent (PGD): every method runs this one loop with its own loss and schedule."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
"""Maps x + delta to a scalar."""
Gradient = Callable[[Tensor], Tensor]
"""Maps x + delta to the gradient of the loss that the loop ascends, same shape."""


def direction(gradient: Tensor, kind: str) -> Tensor:
    """Return the step direction of a gradient `b ...`: `sign`, `l2` (RMS 1 for each image) or `raw` (unchanged)."""
    if kind == "sign":
        return gradient.sign()
    if kind == "l2":
        rms = gradient.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)
        return gradient / rms.view(-1, *([1] * (gradient.dim() - 1)))
    return gradient


class Momentum:
    """Momentum of MI-FGSM (Dong et al. 2018, eqs. 6-7): v <- decay * v + gradient / mean|gradient|, for each image."""

    def __init__(self, decay: float, kind: str) -> None:
        self.decay, self.kind = decay, kind
        self.velocity: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """Add a gradient `b ...` to the velocity; return the velocity's `direction`."""
        size = gradient.flatten(1).abs().mean(1).clamp_min(1e-20)
        unit = gradient / size.view(-1, *([1] * (gradient.dim() - 1)))
        self.velocity = unit if self.velocity is None else self.decay * self.velocity + unit
        return direction(self.velocity, self.kind)


def gradient_of(loss: Loss) -> Gradient:
    """Return the gradient of a loss as a function of x + delta."""

    def gradient(point: Tensor) -> Tensor:
        point = point.detach().requires_grad_(True)
        (value,) = torch.autograd.grad(loss(point), point)
        return value

    return gradient


def pgd(
    x: Tensor,
    delta: Tensor,
    gradient: Gradient,
    *,
    projection: Callable[[Tensor], Tensor],
    step_size: float,
    steps: int,
    update: str | Momentum = "sign",
) -> Tensor:
    """Return delta after `steps` PGD steps: delta <- projection(delta + step_size * direction of gradient(x + delta)).

    `x`, `delta`: same shape, [0, 1] units, as is `step_size`. `projection` maps a perturbation to the allowed set
    (`ball.around`). `update`: a kind of `direction`, or momentum. Source: Madry et al. 2018; METHOD "PGD step".
    """
    for _ in range(steps):
        value = gradient(x + delta)
        change = update(value) if isinstance(update, Momentum) else direction(value, update)
        delta = projection(delta + step_size * change).detach()
    return delta
