"""Projected gradient ascent (PGD): every method runs this one loop with its own loss and schedule."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
"""Maps x + delta to a scalar."""
Gradient = Callable[[Tensor], Tensor]
"""Maps x + delta to the gradient of the loss that the loop ascends, same shape."""


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
) -> Tensor:
    """Return delta after `steps` PGD steps: delta <- projection(delta + step_size * sign(gradient(x + delta))).

    `x`, `delta`: same shape, [0, 1] units, as is `step_size`. `projection` maps a perturbation to the allowed set
    (`ball.around`). Source: Madry et al. 2018, section 2.1.
    """
    for _ in range(steps):
        delta = projection(delta + step_size * gradient(x + delta).sign()).detach()
    return delta
