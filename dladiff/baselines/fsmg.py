"""FSMG of Anti-DreamBooth (Van Le et al. 2023, section 4.2): ascend L_cond of one model, tuned on the clean photos."""

import torch
from torch import Tensor

from dladiff.baselines.student import Student, ascend
from dladiff.baselines.task import Task


def fsmg(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""
    schedule = task.schedule
    student = Student(task.surrogate, schedule.prompt)
    student.train(task.clean, schedule, task.one)
    return ascend(task.x, torch.zeros_like(task.x), student.denoising, schedule, task.generators, schedule.steps)
