"""Perceptual limits on a perturbation beside its L-inf bound: a blur in smooth regions, and a maximum LPIPS."""

from collections.abc import Callable

import torch
from torch import Tensor

from dladiff.core.pixels import Images, Pixels, to_uint8
from dladiff.core.transforms import blur

Measure = Callable[[Pixels, Pixels], float]
"""Returns the LPIPS of two images, h x w x 3."""
NEIGHBOURHOOD = 2.0
"""Standard deviation of the window in which the photo's local contrast is measured, pixels."""
SMOOTH = 4 / 255
"""Local contrast, [0, 1] units, at which half of the blur applies; skin in even light lies below."""
HALVINGS = 6
"""Bisection steps in `within_lpips`."""


def smoothing(x: Images, sigma: float) -> Callable[[Tensor], Tensor]:
    """Return a function that blurs a perturbation where the photos `b 3 h w` are smooth (skin, sky, walls).

    `sigma`: standard deviation of the blur, pixels. Regions with contrast stay unblurred, because the photo's texture
    hides the perturbation there (contrast masking: Legge and Foley 1980).
    """
    grey = x.mean(1, keepdim=True)
    contrast = (blur(grey.square(), NEIGHBOURHOOD) - blur(grey, NEIGHBOURHOOD).square()).clamp_min(0).sqrt()
    share = 1 / (1 + (contrast / SMOOTH).square())
    return lambda delta: delta + share * (blur(delta, sigma) - delta)


def within_lpips(delta: Tensor, x: Images, measure: Measure, max_lpips: float) -> Tensor:
    """Return the perturbations `b 3 h w`, each scaled down, where needed, until its LPIPS is at most `max_lpips`."""
    out = torch.empty_like(delta)
    for i in range(len(x)):
        clean = to_uint8(x[i : i + 1])

        def lpips_at(scale: float, i: int = i, clean: Pixels = clean) -> float:
            return measure(clean, to_uint8(x[i : i + 1] + scale * delta[i : i + 1]))

        low, high = 0.0, 1.0
        if lpips_at(high) > max_lpips:
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if lpips_at(middle) <= max_lpips else (low, middle)
        else:
            low = high
        out[i] = low * delta[i]
    return out
