"""Preprocessing against other libraries and closed forms; purifiers on small models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut

from dladiff.core.tiles import Square
from dladiff.errors import ModelError
from dladiff.evaluation import purifiers
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS
from dladiff.evaluation.squares import mean_of_squares

PLAIN = [name for name, record in PREPROCESSINGS.items() if not record.purifier]
PHOTO = astronaut()[:256, 100:356].copy()
FLAT = np.full((48, 64, 3), 120, np.uint8)


def error(name: str) -> float:
    return float(np.square(PREPROCESSINGS[name].prepare()(PHOTO).astype(float) - PHOTO).mean())


@pytest.mark.parametrize("name", PLAIN)
def test_same_photo_same_bytes_and_the_photo_itself_stays(name):
    before = PHOTO.copy()
    once, again = PREPROCESSINGS[name].prepare()(PHOTO), PREPROCESSINGS[name].prepare()(PHOTO)
    assert once.dtype == np.uint8 and np.array_equal(once, again)
    assert np.array_equal(PHOTO, before) and not np.shares_memory(once, PHOTO)


@pytest.mark.parametrize("name", [n for n in PLAIN if n not in ("noise", "crop")])
def test_a_flat_photo_stays_flat(name):
    assert np.abs(PREPROCESSINGS[name].prepare()(FLAT).astype(int) - 120).max() <= 1


def test_jpeg_loses_more_at_lower_quality():
    assert 0 == error("none") < error("jpeg95") < error("jpeg75") < error("jpeg50")


def test_half_takes_single_pixels_away():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    found = PREPROCESSINGS["half"].prepare()(np.repeat(board[..., None], 3, 2).astype(np.uint8))
    assert found.shape == (64, 64, 3) and np.abs(found[8:-8, 8:-8].astype(float) - 127.5).max() < 4


def test_crop_is_the_middle_nine_tenths():
    found = PREPROCESSINGS["crop"].prepare()(PHOTO[:200, :100])
    assert np.array_equal(found, PHOTO[10:190, 5:95])


def test_blur_is_scipy_s():
    expected = gaussian_filter(PHOTO.astype(float), (1, 1, 0), mode="nearest")
    assert np.abs(PREPROCESSINGS["blur"].prepare()(PHOTO) - expected).max() < 2


def test_noise_has_eight_levels_and_depends_on_the_photo():
    noise = PREPROCESSINGS["noise"].prepare()
    one, two = noise(FLAT) - FLAT.astype(int), noise(FLAT + 1) - FLAT.astype(int) - 1
    assert one.std() == pytest.approx(8, abs=0.2) and abs(one.mean()) < 0.3
    assert np.abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.05


def test_total_variation_falls():
    def variation(photo: np.ndarray) -> float:
        return sum(float(np.abs(np.diff(photo.astype(float), axis=axis)).sum()) for axis in (0, 1))

    assert variation(PREPROCESSINGS["tv"].prepare()(PHOTO)) < 0.7 * variation(PHOTO)


def test_chains_are_their_parts_in_order():
    blurred, halved, smooth = (PREPROCESSINGS[name].prepare() for name in ("blur", "half", "jpeg75"))
    chains = {name: PREPROCESSINGS[name].prepare()(PHOTO) for name in ("blur_jpeg75", "jpeg75_half")}
    assert np.array_equal(chains["blur_jpeg75"], smooth(blurred(PHOTO)))
    assert np.array_equal(chains["jpeg75_half"], halved(smooth(PHOTO)))


@pytest.mark.parametrize("name", ["blur_jpeg75", "jpeg75_half"])
@pytest.mark.parametrize("size", [(1, 1), (5, 90), (90, 5)])
def test_chains_take_photos_of_any_size(name, size):
    photo = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert PREPROCESSINGS[name].prepare()(photo).shape == photo.shape


@pytest.mark.parametrize(("size", "expected"), [((2160, 1000), (1080, 500)), ((300, 200), (300, 200))])
def test_social_networks_shrink_to_1080(size, expected):
    assert PREPROCESSINGS["social"].prepare()(np.zeros((*size, 3), np.uint8)).shape[:2] == expected


@pytest.mark.parametrize("name", [n for n, record in PREPROCESSINGS.items() if record.needs])
def test_a_purifier_without_weights_says_which(name, tmp_path):
    for weights in ("", str(tmp_path)):
        with pytest.raises(ModelError, match=r"name its (folder|file)"):
            PREPROCESSINGS[name].prepare(weights)


def test_unchanged_squares_are_pasted_back_and_overlaps_are_averaged():
    x = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    squares = [Square(0, 0, 40), Square(10, 0, 40)]
    same = mean_of_squares(x, squares, 40, lambda crop: crop)
    torch.testing.assert_close(same, x)
    levels = iter((0.2, 0.8))
    found = mean_of_squares(x, squares, 40, lambda crop: torch.full_like(crop, next(levels)))
    for columns, level in ((slice(0, 10), 0.2), (slice(10, 40), 0.5), (slice(40, 50), 0.8)):
        torch.testing.assert_close(found[..., columns], torch.full_like(found[..., columns], level))
    assert torch.equal(found[..., 50:], x[..., 50:])


@pytest.mark.networks
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' DPM-Solver++
def test_sdedit_redraws_the_face_and_nothing_else(monkeypatch):
    monkeypatch.setattr(purifiers, "SDEDIT_STEPS", 10)
    purify = PREPROCESSINGS["sdedit"].prepare()
    found = purify(PHOTO)
    assert found.shape == PHOTO.shape and np.array_equal(found, purify(PHOTO))
    changed = np.abs(found.astype(int) - PHOTO).max(2) > 0
    assert 0.05 < changed.mean() < 0.9 and not changed[:5].any()
    assert np.array_equal(purify(FLAT), FLAT)


@pytest.fixture(scope="module")
def pixel_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pixel model that predicts no noise at all, in the layout of diffusers' DDPMPipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=32, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    folder = tmp_path_factory.mktemp("pixel")
    DDPMPipeline(unet, DDPMScheduler(1000)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["diffpure", "gridpure"])
def test_a_pixel_model_noises_and_goes_back(name, pixel_model, monkeypatch):
    monkeypatch.setattr(purifiers, "DIFFPURE_T", 5)
    monkeypatch.setattr(purifiers, "GRID_ROUNDS", 1)
    monkeypatch.setattr(purifiers, "GRID_T", 2)
    photo = PHOTO[:40, :56]
    purify = PREPROCESSINGS[name].prepare(str(pixel_model))
    found = purify(photo)
    assert found.shape == photo.shape and np.array_equal(found, purify(photo))
    assert 0 < np.abs(found.astype(float) - photo).mean() < 20
