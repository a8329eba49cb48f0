"""PhotoGuard's encoder attack: its distance by diffusers' own VAE, its gradient by differences, and what it reaches."""

import pytest
import torch
from torch import Generator, Tensor

from dladiff.baselines.photoguard import grey_latents, photoguard, photoguard_loss
from dladiff.baselines.task import Task
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import PX, schedule_for


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return Surrogate("embedded", torch.device("cpu"))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=Generator().manual_seed(1)) * 0.8 + 0.1


def test_the_loss_is_minus_the_squared_distance_to_the_latents_of_a_grey_picture(surrogate, x):
    grey = surrogate.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean  # 0 is grey in [-1, 1]
    torch.testing.assert_close(grey_latents(surrogate, x), grey, rtol=1e-4, atol=1e-5)
    distance = (surrogate.vae.encode(x * 2 - 1).latent_dist.mean - grey).square().sum()
    torch.testing.assert_close(photoguard_loss(surrogate, x, grey), -distance, rtol=1e-4, atol=1e-2)


def test_the_gradient_is_that_of_central_differences(surrogate, x):
    target = grey_latents(surrogate, x)
    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(photoguard_loss(surrogate, point, target), point)
    direction = torch.randn(x.shape, generator=Generator().manual_seed(2))
    ahead, behind = (photoguard_loss(surrogate, x + s * 2e-3 * direction, target) for s in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 4e-3, rel=0.05)


def test_the_latents_come_closer_to_grey_than_by_noise_of_the_same_bound(surrogate, x):
    schedule = schedule_for("photoguard", "embedded").replaced(steps=12)
    delta = photoguard(Task(surrogate, x, x, schedule, [Generator().manual_seed(i) for i in (0, 1)], Generator()))
    noise = torch.randn(x.shape, generator=Generator().manual_seed(3)).sign() * 16 * PX
    target = grey_latents(surrogate, x)
    clean, attacked, noisy = (float(-photoguard_loss(surrogate, p, target)) for p in (x, x + delta, x + noise))
    assert attacked < 0.8 * min(clean, noisy)
