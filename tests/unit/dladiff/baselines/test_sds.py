"""Score distillation: its gradient by the chain rule through the VAE alone, v-prediction, and both directions."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Generator, Tensor

from dladiff.baselines.sds import noise_error, sds, sds_loss
from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate
from dladiff.diffusion.surrogate import Noise, Surrogate
from dladiff.settings.schedules import schedule_for

PROMPT = "a photo of sks person"


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return Surrogate("embedded", torch.device("cpu"))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=Generator().manual_seed(1)) * 0.8 + 0.1


def streams() -> list[Generator]:
    return [Generator().manual_seed(i) for i in (0, 1)]


def test_the_gradient_is_the_error_taken_back_through_the_vae_alone(surrogate, x):
    trainable, noise = TrainableSurrogate(surrogate, PROMPT), surrogate.draw(streams(), 64)
    point = x.clone().requires_grad_(True)
    posterior = surrogate.vae.encode(point * 2 - 1).latent_dist
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents = (posterior.mean + posterior.std * noise.posterior) * surrogate.vae.config.scaling_factor
    noisy = schedule.add_noise(latents, noise.latent, noise.t)
    with torch.no_grad():
        text = surrogate.prompt(PROMPT).embedding.expand(2, -1, -1)
        error = surrogate.unet(noisy, noise.t, text).sample - noise.latent
    (wanted,) = torch.autograd.grad(noisy, point, grad_outputs=error)
    (found,) = torch.autograd.grad(sds_loss(trainable, point, streams(), -1.0), point)
    torch.testing.assert_close(found, -wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_the_unet_runs_without_a_gradient(surrogate, x):
    trainable, recording = TrainableSurrogate(surrogate, PROMPT), []
    trainable.unet.register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    sds_loss(trainable, x.clone().requires_grad_(True), streams(), 1.0)
    assert recording == [False]


def test_an_error_of_a_v_prediction_is_that_of_its_noise():
    alphas = torch.tensor([1.0, 0.64])
    latents, noise = torch.randn(1, 4, 2, 2), Noise(torch.tensor([1]), torch.randn(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))
    velocity = 0.8 * noise.latent - 0.6 * latents
    fake: Any = SimpleNamespace(
        unet=None,
        prompt=lambda: None,
        surrogate=SimpleNamespace(
            alphas=alphas,
            prediction="v_prediction",
            autocast=lambda: torch.autocast("cpu", enabled=False),
            predict=lambda *_: velocity + 0.5,
        ),
    )
    torch.testing.assert_close(noise_error(fake, latents, noise), torch.full_like(latents, 0.4))


@pytest.mark.networks
def test_descent_lowers_the_denoising_error_and_ascent_raises_it(surrogate, x):
    trainable = TrainableSurrogate(surrogate, PROMPT)
    reached = {}
    for weight in (-1.0, 1.0):
        schedule = schedule_for("sds", "embedded").replaced(steps=12, weight=weight)
        delta = sds(Task(surrogate, x, x, schedule, streams(), Generator()))
        with torch.no_grad():
            errors = [float(trainable.denoising(x + delta, streams())) for _ in range(1)]
            errors += [float(trainable.denoising(x + delta, [Generator().manual_seed(s)] * 2)) for s in range(10, 18)]
        reached[weight] = sum(errors)
    assert schedule_for("sds", "sd21").weight == -1 and reached[-1.0] < reached[1.0]
