"""FSMG of Anti-DreamBooth (Van Le et al. 2023, section 4.2): ascend L_cond of one model, tuned on the clean photos."""

import torch
from torch import Generator, Tensor

from dladiff.baselines.student import Student, ascend
from dladiff.compared import BaselineConfig
from dladiff.pixels import Images
from dladiff.surrogate import Surrogate


def fsmg(
    surrogate: Surrogate,
    clean: Images,
    x: Images,
    schedule: BaselineConfig,
    generators: list[Generator],
    one: Generator,
) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""
    student = Student(surrogate, schedule.prompt)
    student.train(clean, schedule, one)
    return ascend(x, torch.zeros_like(x), student.denoising, schedule, generators, schedule.steps)
