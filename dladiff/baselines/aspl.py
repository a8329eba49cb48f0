"""ASPL of Anti-DreamBooth (Van Le et al. 2023, section 4.3): train surrogate and perturbation alternately."""

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
"""Maps (the epoch's fine-tuned copy, delta) to the new delta."""


def alternate(trainable: TrainableSurrogate, task: Task, ascend_with: Ascend) -> Tensor:
    """Return delta `n 3 r r` after all epochs.

    In each epoch, a copy of the model is fine-tuned on the clean photos, PGD attacks the copy, and the model itself is
    trained on the perturbed photos.
    """
    delta = torch.zeros_like(task.x)
    for _ in range(task.schedule.epochs):
        copy = trainable.clone()
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
