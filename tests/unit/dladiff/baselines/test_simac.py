"""SimAC: the search keeps the interval of largest gradient, and PGD stays inside of what is kept."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from dladiff.baselines import simac
from dladiff.baselines.disdiff import MIN_LEFT, timesteps
from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate
from dladiff.diffusion.surrogate import Noise, Surrogate
from dladiff.settings.schedules import schedule_for

PEAK = 480
"""Timestep at which the toy loss has the largest gradient; it falls off on both sides."""


class Toy:
    """A loss of known gradient at every timestep."""

    surrogate = SimpleNamespace(
        alphas=range(1000), draw=lambda generators, side: Noise(torch.zeros(1, dtype=torch.long), *[torch.zeros(1)] * 2)
    )

    def denoising_at(self, point: Tensor, noise: Noise) -> Tensor:
        return point.sum() * (1000.0 - abs(int(noise.t) - PEAK))


@pytest.mark.parametrize("seed", range(5))
def test_the_search_keeps_the_interval_of_largest_gradient(seed: int) -> None:
    toy: Any = Toy()
    schedule = schedule_for("simac", "sd21").replaced(search=1000)
    kept = timesteps(toy, torch.zeros(1, 3, 8, 8), schedule, Generator().manual_seed(seed))
    assert 0 < len(kept) <= MIN_LEFT
    assert PEAK in kept
    distance = sum(abs(t - PEAK) for t in kept) / len(kept)
    assert distance < 250 / 2, "timesteps at random lie 250 from the peak on average"


def test_one_step_is_the_sign_of_the_gradient_at_a_kept_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = Surrogate("embedded", torch.device("cpu"))
    x = torch.rand(1, 3, 64, 64, generator=Generator().manual_seed(1)) * 0.8 + 0.1
    schedule = schedule_for("simac", "embedded").replaced(epochs=1, steps=1, training=0)
    monkeypatch.setattr(simac, "timesteps", lambda *_: [700])
    delta = simac.simac(Task(surrogate, x, x, schedule, [Generator().manual_seed(3)], Generator()))
    noise = surrogate.draw([Generator().manual_seed(3)], 64)
    point = x.clone().requires_grad_(True)
    loss = TrainableSurrogate(surrogate, schedule.prompt).denoising_at(point, replace(noise, t=torch.tensor([700])))
    (gradient,) = torch.autograd.grad(loss, point)
    torch.testing.assert_close(delta, schedule.step_size * gradient.sign(), atol=1e-6, rtol=0)
