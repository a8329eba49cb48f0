"""Purification by a VAE: the reconstruction by diffusers itself, IMPRESS's losses, and photos of unusual sizes."""

from typing import Any

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch import Generator, nn

from dladiff.core.ssimulacra2 import Ssimulacra2
from dladiff.evaluation import vae_purifiers
from dladiff.evaluation.attackers.base import load_base
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS
from dladiff.evaluation.vae_purifiers import impressed, inconsistency, reconstructed

PHOTO = astronaut()[:256, 100:356].copy()
FLAT = np.full((48, 64, 3), 120, np.uint8)


class Blur(nn.Module):
    """Stands in for a VAE: reconstructs a picture as means of 2 x 2 pixels, so plain areas are consistent."""

    def encode(self, x: torch.Tensor):
        small = nn.functional.avg_pool2d(x, 2)
        return type("Out", (), {"latent_dist": type("Dist", (), {"mode": staticmethod(lambda: small)})})

    def decode(self, latents: torch.Tensor):
        return type("Out", (), {"sample": latents.repeat_interleave(2, -1).repeat_interleave(2, -2)})


def test_a_consistent_picture_has_no_loss_and_a_checkerboard_its_contrast():
    assert float(inconsistency(Blur(), torch.full((1, 3, 16, 16), 0.3))) == pytest.approx(0, abs=1e-10)
    board = torch.from_numpy(np.indices((16, 16)).sum(0) % 2).float().expand(1, 3, 16, 16)
    assert float(inconsistency(Blur(), 0.5 + 0.1 * (board * 2 - 1))) == pytest.approx(0.01, rel=1e-4)


def test_impress_removes_what_the_vae_cannot_reconstruct_and_keeps_the_rest(monkeypatch):
    monkeypatch.setattr(vae_purifiers, "IMPRESS_STEPS", 60)
    small = torch.rand(1, 3, 8, 8, generator=Generator().manual_seed(0)) * 0.6 + 0.2
    clean = nn.functional.interpolate(small, (32, 32), mode="nearest")
    board = torch.from_numpy(np.indices((32, 32)).sum(0) % 2).float() * 2 - 1
    protected = clean + 0.04 * board
    once = impressed(Blur(), protected, Generator().manual_seed(1))
    assert torch.equal(once, impressed(Blur(), protected, Generator().manual_seed(1)))
    assert float(inconsistency(Blur(), once)) < 0.3 * float(inconsistency(Blur(), protected))
    assert float((once - clean).square().mean()) < 0.6 * float((protected - clean).square().mean())


def test_the_perceptual_term_keeps_the_result_near_the_protected_picture(monkeypatch):
    monkeypatch.setattr(vae_purifiers, "IMPRESS_STEPS", 40)
    protected = torch.rand(1, 3, 32, 32, generator=Generator().manual_seed(0)) * 0.6 + 0.2
    scores = {}
    for weight in (0.0, 10.0):
        monkeypatch.setattr(vae_purifiers, "IMPRESS_WEIGHT", weight)
        found = impressed(Blur(), protected, Generator().manual_seed(1))
        scores[weight] = float(Ssimulacra2(protected, exact=False)(found).min())
    assert scores[0.0] + 10 < scores[10.0]


@pytest.mark.networks
def test_the_round_trip_is_that_of_diffusers_and_of_faces_alone(monkeypatch):
    base = load_base("embedded")
    x = torch.rand(1, 3, 64, 64, generator=Generator().manual_seed(0))
    with torch.no_grad():
        expected = base.pipe.vae(x * 2 - 1, sample_posterior=False).sample / 2 + 0.5
        torch.testing.assert_close(reconstructed(base.pipe.vae, x), expected)
    monkeypatch.setattr(vae_purifiers, "IMPRESS_STEPS", 2)
    for name in ("vae", "impress"):
        purify = PREPROCESSINGS[name].prepare()
        found = purify(PHOTO)
        assert found.shape == PHOTO.shape and np.array_equal(found, purify(PHOTO))
        changed = np.abs(found.astype(int) - PHOTO).max(2) > 0
        assert 0.05 < changed.mean() < 0.9 and not changed[:5].any()
        assert np.array_equal(purify(FLAT), FLAT)


@pytest.mark.networks
def test_a_whole_photo_that_is_small_or_long_is_purified_too(monkeypatch):
    monkeypatch.setattr(vae_purifiers, "IMPRESS_STEPS", 1)
    for name in ("vae", "impress"):
        purify: Any = PREPROCESSINGS[name].prepare()
        monkeypatch.setattr(purify, "base", type("Base", (), {**vars(purify.base), "region": "photo"}))
        for size in ((5, 40), (33, 7)):
            photo = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
            assert purify(photo).shape == photo.shape
