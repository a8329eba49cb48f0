"""How far areas of a picture change their colour: differentiable, in CIE76 units.

SSIMULACRA2 compares no colour of areas larger than about 16 pixels, so an optimiser hides its perturbation there: as
blotches of other skin colours, which anybody sees. On skin it also hides thin lines of another colour.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dladiff.core.pixels import Images

CELLS = (4, 8, 16, 32)
"""Sides of the areas whose mean colours are compared, pixels."""
MATRIX = ((0.4339526, 0.3762199, 0.1898430), (0.2126729, 0.7151522, 0.0721750), (0.0177566, 0.1094680, 0.8729553))
"""Linear sRGB to CIE XYZ over the white point D65 (IEC 61966-2-1)."""


class ColourShift:
    """Compares changed pictures with one unchanged picture."""

    def __init__(self, original: Images) -> None:
        """`original`: `1 3 h w`, sRGB in [0, 1]."""
        self.base = [_lab(area) for area in _areas(original)]

    def __call__(self, changed: Images) -> Tensor:
        """Return the largest of the 4-norms over areas of each size, a scalar."""
        norms = [
            ((_lab(area) - base).square().sum(1) + 1e-6).square().mean() ** 0.25
            for area, base in zip(_areas(changed), self.base, strict=True)
        ]
        return torch.stack(norms).max()


def _areas(picture: Images) -> list[Tensor]:
    linear = torch.where(picture <= 0.04045, picture / 12.92, ((picture.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)
    finest = functional.avg_pool2d(linear, CELLS[0], ceil_mode=True)
    return [functional.avg_pool2d(finest, side // CELLS[0], ceil_mode=True) for side in CELLS]


def _lab(linear: Tensor) -> Tensor:
    """Return CIE L*a*b* of linear sRGB `1 3 h w`."""
    ratios = torch.einsum("ij,bjhw->bihw", linear.new_tensor(MATRIX), linear)
    root = torch.where(ratios > 0.008856, ratios.clamp_min(0.008) ** (1 / 3), 7.787 * ratios + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
