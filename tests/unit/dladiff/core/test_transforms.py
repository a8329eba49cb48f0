"""Transforms against Pillow, SciPy and finite differences."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dladiff.core.pixels import to_float
from dladiff.core.transforms import blur, draw_transform, jpeg, mirror, resize


def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[40:88, 180:244])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_jpeg_is_pillows_and_its_gradient_passes_straight_through() -> None:
    turned = np.ascontiguousarray(photo()[:, ::-1])
    stored = []
    for one in (photo(), turned):
        with io.BytesIO() as file:
            Image.fromarray(one).save(file, "JPEG", quality=70)
            stored.append(to_float(np.array(Image.open(file))))
    images = torch.cat([to_float(photo()), to_float(turned)]).requires_grad_(True)
    got = jpeg(images, 70)
    assert torch.equal(got.detach(), torch.cat(stored))
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((got * weights).sum(), images)
    assert torch.equal(gradient, weights)
    assert float((got - images).detach().abs().max()) > 0.02


def test_jpeg_clips_values_outside_the_pixel_range() -> None:
    images = torch.tensor([-0.5, 0.5, 1.5]).view(1, 1, 1, 3).expand(1, 3, 8, 3).clone().requires_grad_(True)
    got = jpeg(images, 95)
    assert float(got.detach().min()) >= 0 and float(got.detach().max()) <= 1
    (gradient,) = torch.autograd.grad(got.sum(), images)
    assert gradient[0, 0, 0].tolist() == [1, 1, 1]  # a pixel outside the range can return


def test_blur_is_scipys() -> None:
    images = numbers(2, 3, 20, 24)
    expected = gaussian_filter(images.numpy(), (0, 0, 1.1, 1.1), mode="nearest", radius=(0, 0, 4, 4))
    np.testing.assert_allclose(blur(images, 1.1).numpy(), expected, atol=1e-12)


def test_resize_is_pillows() -> None:
    one = numbers(1, 1, 30, 40).float()
    small = Image.fromarray(one[0, 0].numpy()).resize((20, 15), Image.Resampling.BILINEAR)
    expected = np.array(small.resize((40, 30), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resize(one, 0.5)[0, 0].numpy(), expected, atol=1e-5)


def test_identity_cases() -> None:
    images = numbers(2, 3, 9, 12)
    assert torch.equal(blur(images, 0), images)
    assert torch.allclose(resize(images, 1.0), images)
    assert torch.equal(mirror(mirror(images)), images) and not torch.equal(mirror(images), images)
    flat = torch.full((1, 3, 16, 16), 0.25, dtype=torch.float64)
    for changed in (blur(flat, 1.0), resize(flat, 0.6)):
        assert torch.allclose(changed, flat)


@pytest.mark.parametrize("change", [mirror, lambda x: resize(x, 0.7), lambda x: blur(x, 0.8)])
def test_gradients_against_finite_differences(change: Callable[[Tensor], Tensor]) -> None:
    images = numbers(1, 3, 7, 8).requires_grad_(True)
    assert torch.autograd.gradcheck(change, images)


def test_a_draw_is_the_generators_and_the_same_for_the_whole_batch() -> None:
    one = to_float(photo())
    batch = torch.cat([one, one])
    kinds = set()
    for seed in range(24):
        drawn = [draw_transform(torch.Generator().manual_seed(seed)) for _ in range(2)]
        got = drawn[0](batch)
        assert torch.equal(got, drawn[1](batch)) and torch.equal(got[0], got[1]) and got.shape == batch.shape
        plain = draw_transform(torch.Generator().manual_seed(seed), mirrored=False)(batch)
        assert torch.equal(got, plain) or torch.equal(got, mirror(plain))
        kinds.add((torch.equal(plain, batch), torch.equal(got, plain)))
    assert len(kinds) == 4
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    for generator, mirrored in zip(generators, (True, False), strict=True):
        draw_transform(generator, mirrored=mirrored)
    assert torch.equal(*(torch.rand(1, generator=g) for g in generators))
