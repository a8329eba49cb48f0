import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from dladiff.core.pixels import to_float, to_uint8
from dladiff.core.quality import linf, psnr, ssim


def test_against_scikit_image_and_closed_forms() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    b = np.clip(a.astype(int) + rng.integers(-9, 10, a.shape), 0, 255).astype(np.uint8)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))
    assert linf(a, b) == np.abs(a.astype(int) - b).max() / 255
    assert psnr(a, a) == float("inf") and ssim(a, a) == pytest.approx(1)
    mask = np.zeros((40, 50), bool)
    assert linf(a, b, mask) == 0
    mask[3, 4] = True
    assert linf(a, b, mask) == np.abs(a[3, 4].astype(int) - b[3, 4]).max() / 255


def test_saturated_seven_levels_is_31_2_db() -> None:
    a = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(a, a + 7) == pytest.approx(31.23, abs=0.01)


def test_bytes_survive_the_round_trip() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert np.array_equal(to_uint8(to_float(every)), every)
    assert to_uint8(torch.tensor([-0.5, 0.5, 1.5]).view(1, 3, 1, 1)).ravel().tolist() == [0, 128, 255]
