import numpy as np
import pytest
import torch

from dladiff.core.pixels import Pixels, to_float
from dladiff.core.visibility import smoothing, within_lpips


def half_smooth() -> torch.Tensor:
    x = torch.full((1, 3, 64, 64), 0.5)
    x[..., 32:] += 0.3 * (torch.rand(1, 1, 64, 32, generator=torch.Generator().manual_seed(0)) - 0.5)
    return x


def test_the_blur_acts_on_smooth_regions_and_spares_textured_ones() -> None:
    delta = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    done = smoothing(half_smooth(), 1.5)(delta)
    skin, hair = (slice(None), slice(None), slice(8, -8), slice(4, 24)), (..., slice(8, -8), slice(40, 60))
    assert done[skin].std() < 0.25 * delta[skin].std()
    assert torch.allclose(done[hair], delta[hair], atol=0.25)
    assert (done[hair] - delta[hair]).std() < 0.1
    assert done.abs().max() <= delta.abs().max()


def test_each_image_is_scaled_to_the_largest_perturbation_within_max_lpips() -> None:
    """With the mean absolute change as the measure, the scale is known in closed form."""

    def mean_change(a: Pixels, b: Pixels) -> float:
        return float(np.abs(a.astype(float) - b).mean())

    x = to_float(np.full((32, 32, 3), 100, np.uint8)).repeat(3, 1, 1, 1)
    delta = torch.stack([torch.full((3, 32, 32), levels / 255) for levels in (64.0, 16.0, 0.0)])
    found = within_lpips(delta, x, mean_change, 32.0) * 255
    assert [float(one.mean()) for one in found] == pytest.approx([32.0, 16.0, 0.0], abs=1.01)
    assert mean_change(np.full((1, 1), 100), np.full((1, 1), 100) + found[0].numpy().round()) <= 32
    assert torch.equal(within_lpips(delta, x, mean_change, 100.0), delta)
