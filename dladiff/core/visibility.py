"""What keeps a perturbation from being seen, beside its bound: a blur on smooth ground, and a budget of LPIPS."""

from collections.abc import Callable

import torch
from torch import Tensor

from dladiff.core.pixels import Images, Pixels, to_uint8
from dladiff.core.transforms import blur

Measure = Callable[[Pixels, Pixels], float]
"""LPIPS of two pictures `h w 3`."""
NEIGHBOURHOOD = 2.0
"""Standard deviation of the window in which the photo's own contrast is taken, pixels."""
SMOOTH = 4 / 255
"""Contrast, [0, 1] units, at which ground is as much smooth as it is not: skin in even light lies below."""
HALVINGS = 6
"""Of the interval in which the largest perturbation within an LPIPS budget is looked for."""


def smoothing(x: Images, sigma: float) -> Callable[[Tensor], Tensor]:
    """Return what blurs a perturbation where the photos `b 3 h w` are smooth (skin, sky, walls), and only there.

    `sigma`: standard deviation of the blur, pixels. Where the photo has contrast of its own its noise hides the
    perturbation's (contrast masking: Legge and Foley 1980), and it stays as it is.
    """
    grey = x.mean(1, keepdim=True)
    contrast = (blur(grey.square(), NEIGHBOURHOOD) - blur(grey, NEIGHBOURHOOD).square()).clamp_min(0).sqrt()
    share = 1 / (1 + (contrast / SMOOTH).square())
    return lambda delta: delta + share * (blur(delta, sigma) - delta)


def within_lpips(delta: Tensor, x: Images, measure: Measure, most: float) -> Tensor:
    """Return the perturbation, each image's drawn back along its own ray until its LPIPS is at most `most`."""
    out = torch.empty_like(delta)
    for i in range(len(x)):
        clean = to_uint8(x[i : i + 1])

        def seen(scale: float, i: int = i, clean: Pixels = clean) -> float:
            return measure(clean, to_uint8(x[i : i + 1] + scale * delta[i : i + 1]))

        low, high = 0.0, 1.0
        if seen(high) > most:
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if seen(middle) <= most else (low, middle)
        else:
            low = high
        out[i] = low * delta[i]
    return out
