"""Projection of a perturbation onto the L-inf ball around a photo, intersected with the pixel range."""

from torch import Tensor


def project(delta: Tensor, x: Tensor, eta: float) -> Tensor:
    """Return the nearest perturbation with |delta| <= eta and x + delta in [0, 1] (both are boxes: clip twice).

    `delta`, `x`: same shape, [0, 1] units, x itself in [0, 1].
    """
    return (x + delta.clamp(-eta, eta)).clamp(0, 1) - x
