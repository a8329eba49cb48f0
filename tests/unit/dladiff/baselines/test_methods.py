"""The compared methods' objectives against formulas written beside them, and what holds for every method."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.baselines import methods
from dladiff.baselines.ace import LowRank, ace_loss
from dladiff.baselines.anti_diffusion import anti_diffusion_loss
from dladiff.baselines.aspl import alternate
from dladiff.baselines.caat import KeysAndValues
from dladiff.baselines.disdiff import disdiff_loss, step_scale, timesteps
from dladiff.baselines.mist import mist_loss, pattern, target_latents
from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate, ascend
from dladiff.core.exchange import PhotoIn
from dladiff.core.visibility import ssimulacra2
from dladiff.diffusion.surrogate import Surrogate
from dladiff.faces.detect import CenterFaceDetector
from dladiff.protect import Models, protect
from dladiff.service import named_encoder
from dladiff.settings.schedules import METHODS, PX, SCHEDULES, BaselineConfig, schedule_for
from dladiff.settings.schema import method_config

SIDE = 64
QUICK: dict[str, Any] = {
    "epochs": 1,
    "steps": 2,
    "training": 1,
    "search": 0,
    "prompt_steps": 1,
    "pool": 2,
    "interval": 1,
    "attention_resolution": 8,
}


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return Surrogate("embedded", torch.device("cpu"))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=Generator().manual_seed(1))


def streams(count: int = 2) -> list[Generator]:
    return [Generator().manual_seed(i) for i in range(count)]


def quick(method: str) -> BaselineConfig:
    return schedule_for(method, "embedded").replaced(**QUICK)


def noised(surrogate: Surrogate, x: Tensor, noise: Any) -> tuple[Tensor, Tensor]:
    """Latents and noised latents by the definition, with diffusers' own schedule."""
    from diffusers import DDPMScheduler

    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    posterior = surrogate.vae.encode(x * 2 - 1).latent_dist
    z = posterior.mean + posterior.std * noise.posterior
    return z, schedule.add_noise(z, noise.latent, noise.t)


@contextmanager
def seen_maps(unet: Any, cells: int) -> Iterator[list[Tensor]]:
    """Cross-attention maps `b n m`, heads averaged, by diffusers' own attention scores."""
    found: list[Tensor] = []
    before = unet.attn_processors

    class Seeing:
        def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
            text = hidden if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                attn.head_to_batch_dim(f(t)) for f, t in ((attn.to_q, hidden), (attn.to_k, text), (attn.to_v, text))
            )
            scores = attn.get_attention_scores(q, k)
            if encoder_hidden_states is not None and hidden.shape[1] == cells:
                found.append(scores.view(len(hidden), attn.heads, *scores.shape[1:]).mean(1))
            return attn.to_out[0](attn.batch_to_head_dim(scores @ v))

    unet.set_attn_processor(Seeing())
    yield found
    unet.set_attn_processor(before)


@pytest.mark.networks
@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_bound_range_and_repeatability(surrogate, x, method):
    schedule = quick(method)
    once, again = (
        METHODS[method].load()(Task(surrogate, x, x, schedule, streams(), Generator().manual_seed(5))) for _ in range(2)
    )
    assert once.shape == x.shape and torch.equal(once, again)
    assert 0 < once.abs().max() <= schedule.eta + 1e-6
    assert (x + once).min() >= 0 and (x + once).max() <= 1


@pytest.mark.networks
def test_the_surrogate_is_left_as_it_was(surrogate, x):
    before = {k: v.clone() for k, v in surrogate.unet.state_dict().items()}
    words = surrogate.encoders[0].network.get_input_embeddings().weight.clone()
    METHODS["aspl"].load()(Task(surrogate, x, x, quick("aspl"), streams(), Generator().manual_seed(5)))
    METHODS["ace"].load()(Task(surrogate, x, x, quick("ace"), streams(), Generator().manual_seed(5)))
    after = surrogate.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    assert torch.equal(words, surrogate.encoders[0].network.get_input_embeddings().weight)


def test_none_is_nothing(surrogate, x):
    assert not METHODS["none"].load()(Task(surrogate, x, x, SCHEDULES["none"], streams(), Generator())).any()


def test_ascent_of_a_linear_loss_has_a_closed_form(x):
    weight = torch.randn(x.shape, generator=Generator().manual_seed(2))
    schedule = BaselineConfig(eta=0.03, step_size=0.005, batch=1)
    delta = ascend(
        x, torch.zeros_like(x), lambda point, own: (weight[own[0].initial_seed()] * point).sum(), schedule, streams(), 3
    )
    torch.testing.assert_close(delta, (x + 0.015 * weight.sign()).clamp(0, 1) - x)


def test_denoising_is_the_mean_squared_error_of_the_noise(surrogate, x):
    trainable, noise = TrainableSurrogate(surrogate, "a photo of sks person"), surrogate.draw(streams(), SIDE)
    _, noisy = noised(surrogate, x, noise)
    text = surrogate.prompt("a photo of sks person").embedding.expand(2, -1, -1)
    wanted = functional.mse_loss(surrogate.unet(noisy, noise.t, text).sample, noise.latent)
    torch.testing.assert_close(trainable.denoising_at(x, noise), 2 * wanted)


def test_training_moves_unet_and_text_encoder_by_the_learning_rate(surrogate, x):
    trainable = TrainableSurrogate(surrogate, "a photo of sks person")
    trainable.train(x, BaselineConfig(eta=0, training=1, lr=1e-3), Generator().manual_seed(0))
    text, old_text = (
        trainable.texts[0].network.get_input_embeddings(),
        surrogate.encoders[0].network.get_input_embeddings(),
    )
    pairs = ((trainable.unet.conv_in.weight, surrogate.unet.conv_in.weight), (text.weight, old_text.weight))
    for new, old in pairs:
        most = (new - old).abs().max()  # AdamW's first step: the rate, and the decay
        assert 0.9e-3 <= most <= 1e-3 * (1 + 0.01 * old.abs().max()) + 1e-6
    assert not any(p.requires_grad for p in trainable.parameters())


def test_aspl_attacks_a_copy_that_learnt_the_clean_photos_and_teaches_the_result(x):
    calls: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def clone(self) -> "Fake":
            return Fake("copy")

        def train(self, images: Tensor, schedule: BaselineConfig, generator: Generator) -> None:
            calls.append(f"{self.name} learns {float(images.mean()):.2f}")

    def attack(copy: Any, delta: Tensor) -> Tensor:
        calls.append(f"attack on {copy.name}")
        return delta + 0.1

    zero = torch.zeros(1, 3, 4, 4)
    task = Task(None, zero + 0.5, zero, BaselineConfig(eta=1, epochs=2), [], Generator())  # type: ignore[arg-type]
    alternate(Fake("model"), task, attack)  # type: ignore[arg-type]
    turn = ["copy learns 0.50", "attack on copy", "model learns {:.2f}"]
    assert calls == [line.format(level) for level in (0.1, 0.2) for line in turn]


def test_disdiff_takes_the_energy_of_the_token_off_the_loss(surrogate, x):
    trainable, noise = TrainableSurrogate(surrogate, "a photo of sks person"), surrogate.draw(streams(), SIDE)
    schedule = BaselineConfig(eta=0.1, weight=0.1, attention_resolution=8)
    place = surrogate.prompt("a photo of sks person").instance
    with seen_maps(trainable.unet, 64) as maps:
        plain = trainable.denoising_at(x, noise) / 2
    energy = torch.stack([m[..., place].square().sum(1).mean() for m in maps]).mean()
    torch.testing.assert_close(
        disdiff_loss(trainable, x, noise, schedule), 2 * (plain - 0.1 * energy), rtol=1e-4, atol=1e-6
    )


def test_disdiff_steps_shrink_with_the_timestep_and_poor_timesteps_are_dropped(surrogate, x):
    assert (step_scale(0, 999), step_scale(999, 999)) == (1.0, 0.0)
    assert step_scale(333, 999) == pytest.approx(0.75)
    trainable = TrainableSurrogate(surrogate, "a photo of sks person")
    left = timesteps(trainable, x[:1], BaselineConfig(eta=0, search=1), Generator().manual_seed(0))
    gone = sorted(set(range(1, 1000)) - set(left))
    assert 21 <= len(gone) <= 41 and gone == list(range(gone[0], gone[-1] + 1))


def test_anti_diffusion_pulls_all_cross_attention_to_zero(surrogate, x):
    trainable, schedule = TrainableSurrogate(surrogate, ""), BaselineConfig(eta=0.1, attention_resolution=8)
    noise = surrogate.draw(streams(), SIDE)
    with seen_maps(trainable.unet, 64) as maps:
        plain = trainable.denoising_at(x, noise) / 2
    away = (torch.stack(maps).mean(0) * 100).clamp(0, 1).square().mean()
    torch.testing.assert_close(
        anti_diffusion_loss(trainable, x, streams(), schedule), 2 * (plain - away), rtol=1e-4, atol=1e-6
    )


def test_mist_pulls_to_the_pattern(surrogate, x):
    trainable, noise = TrainableSurrogate(surrogate, "a photo of sks person"), surrogate.draw(streams(), SIDE)
    target = surrogate.vae.encode(pattern(x) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(target_latents(surrogate, x), target, rtol=1e-4, atol=1e-4)
    distance = (surrogate.vae.encode(x * 2 - 1).latent_dist.mean - target).square().sum()
    wanted = 100 * trainable.denoising_at(x, noise) - distance
    torch.testing.assert_close(mist_loss(trainable, x, target, 100.0, streams()), wanted, rtol=1e-4, atol=1e-2)


def test_the_pattern_is_black_and_white_and_repeats(x):
    found = pattern(x)
    assert set(found.unique().tolist()) == {0.0, 1.0} and 0.3 < found.mean() < 0.7
    assert torch.equal(found[..., :32, :32], found[..., 32:, 32:])


def test_caat_trains_keys_and_values_alone(surrogate):
    trainable = KeysAndValues(surrogate, "a photo of sks person")
    layers = [m for name, m in trainable.unet.named_modules() if name.endswith("attn2")]
    wanted = {id(w) for layer in layers for w in (layer.to_k.weight, layer.to_v.weight)}
    assert {id(p) for p in trainable.parameters()} == wanted and len(wanted) == 10


def test_caat_s_first_step_is_the_sign_of_the_denoising_gradient(surrogate, x):
    schedule = SCHEDULES["caat"].replaced(steps=1)
    delta = METHODS["caat"].load()(Task(surrogate, x, x, schedule, streams(), Generator()))
    point = x.clone().requires_grad_(True)
    trainable = TrainableSurrogate(surrogate, schedule.prompt)
    (gradient,) = torch.autograd.grad(trainable.denoising_at(point, surrogate.draw(streams(), SIDE)), point)
    wanted = (x + schedule.step_size * gradient.sign()).clamp(0, 1) - x
    assert (delta - wanted).abs().gt(1e-6).float().mean() < 1e-3  # a gradient that is nearly zero may round either way


def test_ace_pulls_the_prediction_to_the_target(surrogate, x):
    trainable = LowRank(surrogate, "a photo of sks person", rank=2, seed=0)
    noise, target = surrogate.draw(streams(), SIDE), target_latents(surrogate, x)
    _, noisy = noised(surrogate, x, noise)
    text = surrogate.prompt("a photo of sks person").embedding.expand(2, -1, -1)
    predicted = surrogate.unet(noisy, noise.t, text).sample  # a fresh LoRA adds nothing
    torch.testing.assert_close(
        ace_loss(trainable, x, target, streams()), -2 * functional.mse_loss(predicted, target.expand_as(predicted)),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    assert all(".attn" in name for name, p in trainable.unet.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("psnr", [30.0, 35.06, 40.0])
def test_random_signs_have_the_asked_psnr_in_whole_levels(surrogate, x, psnr):
    delta = METHODS["random"].load()(
        Task(surrogate, x, x, SCHEDULES["random"].replaced(min_psnr=psnr), streams(), Generator())
    )
    for row in delta:
        assert float(-10 * torch.log10(row.square().mean())) == pytest.approx(psnr, abs=0.05)
    inside = (x > 0.1) & (x < 0.9)
    levels = delta[inside] / PX
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert abs(float(levels.sign().mean())) < 0.05


@pytest.mark.networks
@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("random", "none")])
def test_methods_meet_at_one_psnr(surrogate, x, method):
    schedule = quick(method).replaced(eta=0.25, step_size=0.04, min_psnr=33.0)
    delta = METHODS[method].load()(Task(surrogate, x, x, schedule, streams(), Generator().manual_seed(0)))
    for row in delta:
        assert float(-10 * torch.log10(row.square().mean())) >= 33.0 - 1e-4


@pytest.mark.networks
def test_protecting_with_a_compared_method_keeps_its_own_bound(surrogate):
    photo = astronaut()[:256, 100:356].copy()
    models = Models(surrogate, [], [named_encoder("embedded:mobile")], CenterFaceDetector(), torch.device("cpu"))
    found = {}
    for method in ("random", "none"):
        config = method_config("tiny", None, {"protection": method})
        (out,) = protect([PhotoIn(key="a", pixels=photo)], [], models, config, 0).photos
        found[method] = out
        assert out.status == "layer1_only" and out.linf <= config.finetuning.eta + 1e-6
    assert np.array_equal(found["none"].pixels, photo)
    assert 7 / 255 < SCHEDULES["random"].eta and 3 / 255 < found["random"].linf


@pytest.mark.networks
@pytest.mark.parametrize("method", ["photoguard", "pid", "sds", "metacloak"])
def test_a_method_is_held_to_a_visibility(surrogate, monkeypatch, method):
    monkeypatch.setattr(methods, "schedule_for", lambda name, model: schedule_for(name, model).replaced(**QUICK))
    photo = astronaut()[:256, 100:356].copy()
    models = Models(surrogate, [], [], CenterFaceDetector(), torch.device("cpu"))
    given = {"protection": method, "visibility": 75, "finetuning": {"eta": 0.1, "min_psnr": 30.6}}
    (out,) = protect([PhotoIn(key="a", pixels=photo)], [], models, method_config("tiny", None, given), 0).photos
    assert out.status == "layer1_only" and 0 < out.linf <= 0.1
    assert 75 <= ssimulacra2(photo, out.pixels) < 100
