"""The colour shift against scikit-image's CIELAB."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from dladiff.core.colour_shift import ColourShift
from dladiff.core.pixels import to_float
from tests.golden.make_tiny import photo


@pytest.mark.parametrize(("before", "after"), [((200, 160, 140), (196, 162, 140)), ((8, 9, 20), (10, 9, 12))])
def test_flat_areas_differ_as_scikit_image_says(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    a, b = (np.tile(np.array(colour, np.uint8), (64, 64, 1)) for colour in (before, after))
    found = float(ColourShift(to_float(a))(to_float(b)))
    expected = float(np.linalg.norm(rgb2lab(a)[0, 0] - rgb2lab(b)[0, 0]))
    assert found == pytest.approx(expected, rel=0.02)


def test_fine_noise_moves_no_area_and_a_blotch_does() -> None:
    x = to_float(photo())
    noise = 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    blotch = torch.zeros_like(x)
    blotch[..., 64:128, 64:128] += torch.tensor([0.03, 0.0, -0.03])[:, None, None]
    shift = ColourShift(x)
    assert float(shift(x)) < 0.05
    assert float(shift((x + noise).clamp(0, 1))) < float(shift((x + blotch).clamp(0, 1)))
