"""ASPL of Anti-DreamBooth (Van Le et al. 2023, section 4.3): surrogate and perturbation are learnt in turns."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from dladiff.baselines.student import Student, ascend
from dladiff.compared import BaselineConfig
from dladiff.pixels import Images
from dladiff.surrogate import Surrogate

Ascend = Callable[[Student, Tensor], Tensor]
"""(the model of this epoch, delta) to the new delta."""


def alternate(
    student: Student, clean: Images, x: Images, schedule: BaselineConfig, one: Generator, ascend_with: Ascend
) -> Tensor:
    """Each epoch: a copy of the model learns the clean photos, PGD attacks the copy, the model learns the result."""
    delta = torch.zeros_like(x)
    for _ in range(schedule.epochs):
        copy = student.twin()
        copy.train(clean, schedule, one)
        delta = ascend_with(copy, delta)
        student.train(x + delta, schedule, one)
    return delta


def aspl(
    surrogate: Surrogate,
    clean: Images,
    x: Images,
    schedule: BaselineConfig,
    generators: list[Generator],
    one: Generator,
) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""

    def attack(copy: Student, delta: Tensor) -> Tensor:
        return ascend(x, delta, copy.denoising, schedule, generators, schedule.steps)

    return alternate(Student(surrogate, schedule.prompt), clean, x, schedule, one, attack)
