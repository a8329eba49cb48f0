"""PID: its two shifts by diffusers' own posterior, a start with a gradient, and what it reaches."""

import pytest
import torch
from torch import Generator, Tensor

from dladiff.baselines.latent_start import small_start
from dladiff.baselines.pid import pid, pid_loss
from dladiff.baselines.task import Task
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import PX, schedule_for


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return Surrogate("embedded", torch.device("cpu"))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=Generator().manual_seed(1)) * 0.8 + 0.1


def task(surrogate: Surrogate, x: Tensor, **changes: int) -> Task:
    schedule = schedule_for("pid", "embedded").replaced(**changes)
    return Task(surrogate, x, x, schedule, [Generator().manual_seed(i) for i in range(len(x))], Generator())


def test_the_loss_is_the_shift_of_mean_and_log_variance(surrogate, x):
    other = x.flip(-1)
    found, clean = (surrogate.vae.encode(p * 2 - 1).latent_dist for p in (other, x))
    wanted = [
        (found.mean[i] - clean.mean[i]).square().mean() + (found.logvar[i] - clean.logvar[i]).square().mean()
        for i in (0, 1)
    ]
    loss = pid_loss(surrogate, other, surrogate.encode_fixed(x, 2))
    torch.testing.assert_close(loss, sum(wanted), rtol=1e-3, atol=1e-4)


def test_at_the_photo_there_is_no_gradient_so_the_start_is_a_random_step(surrogate, x):
    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(pid_loss(surrogate, point, surrogate.encode_fixed(x, 2)), point)
    assert float(gradient.abs().max()) < 1e-6
    start = small_start(task(surrogate, x))
    assert float(start.abs().max()) == pytest.approx(PX, rel=0.01) and float(start.abs().mean()) > 0.4 * PX
    alone = small_start(task(surrogate, x[:1]))
    assert torch.equal(alone, start[:1])


def test_the_posterior_moves_further_than_by_noise_whatever_the_batch(surrogate, x):
    together, alone = (pid(task(surrogate, x, steps=10, batch=size)) for size in (2, 1))
    assert float((together - alone).abs().gt(1e-5).float().mean()) < 0.01  # a gradient near zero may round either way
    clean = surrogate.encode_fixed(x, 2)
    noise = torch.randn(x.shape, generator=Generator().manual_seed(3)).sign() * float(together.abs().max())
    assert float(pid_loss(surrogate, x + together, clean)) > 2 * float(pid_loss(surrogate, x + noise, clean))
