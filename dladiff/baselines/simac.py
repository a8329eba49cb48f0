"""SimAC's timesteps (Wang et al. 2024, arXiv 2312.07865): ASPL at the timesteps with the largest gradient.

Section 4.1, adaptive greedy search: repeatedly remove the neighbourhood of the timestep with the smallest gradient;
PGD then draws from the remaining timesteps. `disdiff.timesteps` is this search. The feature interference loss (section
4.2) is left out, and bound and schedule are ASPL's, so that the two methods differ in their timesteps only.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from dladiff.baselines.aspl import alternate
from dladiff.baselines.disdiff import timesteps
from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate, ascend
from dladiff.core.pixels import Images
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="simac",
    function="simac",
    paper="Wang et al. 2024",
    year=2024,
    maximises="as `aspl`, at the timesteps whose gradient is largest",
    schedule=BaselineConfig(eta=6.4 * PX, epochs=50, steps=6, training=3, lr=5e-7, search=50),
    tiny={"epochs": 8, "lr": 2e-4, "search": 8},
)


def simac_loss(trainable: TrainableSurrogate, point: Images, generators: list[Generator], kept: list[int]) -> Tensor:
    """Return L_cond of one square, `1 3 r r`, at a timestep drawn from `kept`."""
    noise = trainable.surrogate.draw(generators, point.shape[-1])
    t = kept[int(torch.randint(len(kept), (1,), generator=generators[0]))]
    return trainable.denoising_at(point, replace(noise, t=torch.full_like(noise.t, t)))


def simac(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""
    schedule = task.schedule
    trainable = TrainableSurrogate(task.surrogate, schedule.prompt)
    squares = list(zip(torch.split(task.x, 1), task.generators, strict=True))
    kept = [timesteps(trainable, square, schedule, own) for square, own in squares]

    def attack(copy: TrainableSurrogate, delta: Tensor) -> Tensor:
        rows = [
            ascend(square, row, partial(simac_loss, copy, kept=left), schedule, [own], schedule.steps)
            for (square, own), row, left in zip(squares, torch.split(delta, 1), kept, strict=True)
        ]
        return torch.cat(rows)

    return alternate(trainable, task, attack)
