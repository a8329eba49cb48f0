"""The torch form of SSIMULACRA2 against the package, by finite differences, and on parts of a picture."""

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageFilter
from ssimulacra2 import compute_ssimulacra2

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import to_float
from dladiff.core.ssimulacra2 import Ssimulacra2
from tests.golden.make_tiny import photo

KINDS = ["noise 2", "noise 8", "blocks", "jpeg 30", "jpeg 85", "blur", "brighter", "one channel", "stripes", "square"]


def pictures() -> dict[str, Pixels]:
    return {"face": photo(), "cat": np.ascontiguousarray(skimage.data.chelsea()[:211, 30:340])}


def of_package(a: Pixels, b: Pixels) -> float:
    files = [io.BytesIO() for _ in range(2)]
    for file, pixels in zip(files, (a, b), strict=True):
        Image.fromarray(pixels).save(file, "BMP")
        file.seek(0)
    return float(compute_ssimulacra2(*files))


def changed(picture: Pixels, kind: str) -> Pixels:
    rng, (height, width) = np.random.default_rng(5), picture.shape[:2]
    exact = picture.astype(float)
    if kind.startswith("noise"):
        exact += rng.normal(0, float(kind.split()[1]), exact.shape)
    elif kind == "blocks":
        exact += np.kron(rng.normal(0, 5, (height // 4 + 1, width // 4 + 1, 3)), np.ones((4, 4, 1)))[:height, :width]
    elif kind.startswith("jpeg"):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=int(kind.split()[1]))
        return np.array(Image.open(file))
    elif kind == "blur":
        return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.8)))
    elif kind == "brighter":
        exact += 12
    elif kind == "one channel":
        exact[..., 2] += rng.normal(0, 12, (height, width))
    elif kind == "stripes":
        exact += 6 * np.sin(np.arange(width) / 3)[None, :, None]
    elif kind == "square":
        exact[60:100, 60:100] += 15
    return np.clip(np.round(exact), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact", [True, False])
def test_it_agrees_with_the_package_within_half_a_point(kind: str, exact: bool) -> None:
    for picture in pictures().values():
        other = changed(picture, kind)
        found = float(Ssimulacra2(to_float(picture), exact)(to_float(other)))
        assert found == pytest.approx(of_package(picture, other), abs=0.5)


@pytest.mark.parametrize("size", [(9, 40), (31, 8), (64, 65)])
def test_pictures_with_fewer_scales_agree_too(size: tuple[int, int]) -> None:
    picture = np.ascontiguousarray(photo()[100 : 100 + size[0], 80 : 80 + size[1]])
    other = changed(picture, "noise 8")
    found = float(Ssimulacra2(to_float(picture))(to_float(other)))
    assert found == pytest.approx(of_package(picture, other), abs=0.5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    x = to_float(np.ascontiguousarray(photo()[90:138, 90:138])).double()
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    point = (x + 0.02 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0.05, 0.95)
    metric = Ssimulacra2(x)
    (gradient,) = torch.autograd.grad(metric(point.requires_grad_(True)).sum(), point)
    step = 1e-6
    with torch.no_grad():
        numeric = float(metric(point + step * direction) - metric(point - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-3)


def test_regions_are_scored_nearly_as_if_they_were_cut_out() -> None:
    picture = np.ascontiguousarray(skimage.data.astronaut())
    cut = np.s_[100:340, 120:360]
    other = picture.copy()
    other[cut] = changed(picture, "noise 8")[cut]
    regions = [(0, 0, 512, 512), (120, 100, 360, 340), (448, 448, 512, 512)]
    whole, inside, beside = Ssimulacra2(to_float(picture), regions=regions)(to_float(other)).tolist()
    assert whole == pytest.approx(of_package(picture, other), abs=0.5)
    assert inside == pytest.approx(of_package(picture[cut], other[cut]), abs=3)
    assert inside < whole < beside and beside > 99


def test_a_change_hides_at_one_position_and_shows_at_another() -> None:
    """Why the budget compares at shifted positions: descent at one position finds what its means cancel."""
    x = to_float(photo())
    noise = 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    metric, point = Ssimulacra2(x, exact=False), (x + noise).clamp(0, 1)
    for _ in range(30):
        point = point.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(metric(point).sum(), point)
        point = (point + 0.5 / 255 * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        here = float(metric(point))
        shifted = float(Ssimulacra2(x[..., 5:, 3:], exact=False)(point[..., 5:, 3:]))
    assert here - shifted > 3
