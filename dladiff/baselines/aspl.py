"""ASPL of Anti-DreamBooth (Van Le et al. 2023, section 4.3): surrogate and perturbation are learnt in turns."""

from collections.abc import Callable

import torch
from torch import Tensor

from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate, ascend
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="aspl",
    function="aspl",
    paper="Van Le et al. 2023",
    year=2023,
    maximises="L_cond of a copy tuned on clean photos, while the model trains on the result",
    schedule=BaselineConfig(eta=6.4 * PX, epochs=50, steps=6, training=3, lr=5e-7),
    tiny={"epochs": 8, "lr": 2e-4},
)

Ascend = Callable[[TrainableSurrogate, Tensor], Tensor]
"""(the model of this epoch, delta) to the new delta."""


def alternate(trainable: TrainableSurrogate, task: Task, ascend_with: Ascend) -> Tensor:
    """Each epoch: a copy of the model learns the clean photos, PGD attacks the copy, the model learns the result."""
    delta = torch.zeros_like(task.x)
    for _ in range(task.schedule.epochs):
        copy = trainable.twin()
        copy.train(task.clean, task.schedule, task.shared_generator)
        delta = ascend_with(copy, delta)
        trainable.train(task.x + delta, task.schedule, task.shared_generator)
    return delta


def aspl(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""
    schedule = task.schedule

    def attack(copy: TrainableSurrogate, delta: Tensor) -> Tensor:
        return ascend(task.x, delta, copy.denoising, schedule, task.generators, schedule.steps)

    return alternate(TrainableSurrogate(task.surrogate, schedule.prompt), task, attack)
