"""The latent push of several VAEs at once, against finite differences; which settings ask for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dladiff.core.views import View
from dladiff.diffusion.vae import Latents, WeightedVae, load_vaes
from dladiff.errors import ConfigError, ModelError
from dladiff.layers import pushed
from dladiff.layers.latents import SMALLEST, LatentShift
from dladiff.layers.pushed import pushed_vaes, vaes_not_here
from dladiff.layers.zero_shot import Box, ImageGrid
from dladiff.settings.schema import method_config
from tests.support.vae_layouts import write_vae

CPU, SIDE = torch.device("cpu"), 64


class Squares:
    """A VAE in fp64: means over 8 x 8 pixels, squared, and twice them as log variance."""

    name, factor, sha256, licence, source, revision = "squares", 8, "", "", "", ""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def encode(self, images: Tensor) -> Latents:
        """Return the posterior."""
        mean = self.scale * torch.nn.functional.avg_pool2d(images, 8).square()
        return Latents(mean, 2 * mean + mean.square())

    def encode_fixed(self, images: Tensor, size: int) -> Latents:
        """Return the posterior without a gradient."""
        with torch.no_grad():
            return self.encode(images)

    def recompute(self, on: bool) -> None:
        """Do nothing."""


def shift_of(vaes: list[WeightedVae], log_variance: float = 0.0) -> tuple[LatentShift, Tensor]:
    photo = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    box = Box(0, 0, SIDE, SIDE)
    views = [View("middle", 0, 0, SIDE, SIDE)]
    latents = LatentShift(photo, views, (box, ImageGrid(box, 1)), vaes, (SIDE, 1), log_variance)
    for seen in latents.maps:  # finite differences need fp64
        for axis in (seen.down, seen.across):
            axis.matrix = axis.matrix.double()
    return latents, photo


def test_a_step_of_several_vaes_is_the_gradient_of_the_weighted_sum_of_their_logarithms() -> None:
    vaes = [WeightedVae(Squares(1.0), 0.75), WeightedVae(Squares(3.0), 0.25)]
    latents, photo = shift_of(vaes, log_variance=0.5)
    generator = torch.Generator().manual_seed(1)
    delta = 0.02 * torch.rand(1, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) - 0.01

    def value(change: Tensor) -> float:
        total = 0.0
        for weighted in vaes:
            before, after = (weighted.vae.encode(x.clamp(0, 1)) for x in (photo, photo + change))
            moved = (after.mean - before.mean).square().mean() / before.mean.var(correction=0)
            assert after.log_variance is not None and before.log_variance is not None
            spread = before.log_variance.var(correction=0)
            moved = moved + 0.5 * (after.log_variance - before.log_variance).square().mean() / spread
            total -= weighted.weight * float(torch.log(moved + SMALLEST))
        return total

    point = delta.clone().requires_grad_(True)
    loss = latents.loss(point, 0)
    (gradient,) = torch.autograd.grad(loss, point)
    assert float(loss.detach()) == pytest.approx(value(delta), rel=1e-6)
    for place in ((0, 0, 5, 5), (0, 1, 40, 3), (0, 2, 63, 63)):
        step = torch.zeros_like(delta)
        step[place] = 1e-5
        slope = (value(delta + step) - value(delta - step)) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_real_layouts_are_pushed_together(tmp_path: Path) -> None:
    names = ["vae:sd", "vae:flux2", "vae:qwen"]
    vaes = load_vaes([str(write_vae(tmp_path / name[4:], name)) for name in names], (), CPU)
    photo, box = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), Box(0, 0, SIDE, SIDE)
    views = [View("middle", 0, 0, SIDE, SIDE)]
    latents = LatentShift(photo, views, (box, ImageGrid(box, 1)), vaes, (SIDE, 1))
    point = (0.01 * torch.rand(photo.shape, generator=torch.Generator().manual_seed(1))).requires_grad_(True)
    (gradient,) = torch.autograd.grad(latents.loss(point, 0), point)
    parts = []
    for weighted in vaes:
        alone = LatentShift(photo, views, (box, ImageGrid(box, 1)), [weighted], (SIDE, 1))
        parts.append(torch.autograd.grad(alone.loss(point, 0), point)[0])
        assert parts[-1].abs().max() > 0
    assert torch.allclose(gradient, torch.stack(parts).sum(0), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "pushes", "trains"),
    [
        ({}, True, False),
        ({"visibility": 0}, False, True),
        ({"layer_1": "adft"}, False, True),
        ({"layer_1": "both"}, True, True),
        ({"layer_1": "latent", "layers": "finetuning"}, True, False),
        ({"layers": "zero_shot"}, False, False),
        ({"layers": "zero_shot", "visibility": 0}, False, False),
        ({"protection": "aspl"}, False, True),
        ({"protection": "aspl", "visibility": 70.0}, False, True),
    ],
)
def test_what_a_configuration_needs(settings: dict[str, Any], pushes: bool, trains: bool) -> None:
    config = method_config("tiny", None, settings)
    assert (config.pushes_latents, config.trains_surrogate) == (pushes, trains)
    assert pushed_vaes(config) == (["embedded"] if pushes else []) and vaes_not_here(config) == ""


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"layer_1": "latent", "visibility": 0}, "layer_1: latent needs a visibility budget; set visibility"),
        ({"layer_1": "both", "visibility": 0}, "layer_1: both needs a visibility budget"),
        ({"layer_1": "adft", "protection": "aspl"}, "layer_1: aspl is a compared method, and is layer 1 itself"),
        ({"layer_1": "latent", "layers": "zero_shot"}, "layer_1: layers: zero_shot has no layer 1"),
        ({"layer_1": "adft", "joint": {"vaes": ["vae:sd"]}}, "layer_1: adft pushes no latents"),
        ({"visibility": 0, "joint": {"log_variance": 0.5}}, "visibility: 0 pushes no latents"),
        ({"joint": {"vae_weights": [1.0]}}, "joint.vae_weights: 1 weights for 0 VAEs"),
        ({"joint": {"vaes": ["a", "a"]}}, "joint.vaes: one VAE is listed twice"),
        ({"joint": {"vaes": ["fetched", "a"]}}, "joint.vaes: fetched means all known VAEs here"),
        ({"joint": {"vaes": ["fetched"], "vae_weights": [1.0]}}, "with equal weights"),
        ({"layer_1": "latents"}, "latents' is not one of auto, latent, adft, both"),
    ],
)
def test_contradictions_are_refused_in_one_line(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        method_config("tiny", None, settings)
    assert len(caught.value.faults) == 1


def test_fetched_means_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    config = method_config("latent", None, {"layers": "finetuning"})
    monkeypatch.setattr(pushed, "fetched_vaes", lambda: (["vae:sd", "vae:qwen"], ["vae:flux2"]))
    assert pushed_vaes(config) == ["vae:sd", "vae:qwen"]
    assert (
        vaes_not_here(config) == "not pushed, because not on this machine: vae:flux2 (dladiff models fetch vae:flux2)"
    )


def test_none_of_the_known_ones_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match="none of the known VAEs is on this machine: dladiff models fetch vae:sd vae:"):
        pushed_vaes(method_config("latent", None, {"layers": "finetuning"}))
