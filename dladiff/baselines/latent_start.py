"""The first perturbation of methods that move a posterior: at zero, a squared shift has no gradient."""

import torch
from torch import Tensor

from dladiff.baselines.task import Task
from dladiff.core.ball import project


def small_start(task: Task) -> Tensor:
    """Return random numbers of at most one PGD step, `n 3 r r`, within the schedule's bounds."""
    x, schedule = task.x, task.schedule
    draws = [torch.rand(x.shape[1:], generator=own, dtype=torch.float32) for own in task.generators]
    return project((torch.stack(draws).to(x) * 2 - 1) * schedule.step_size, x, schedule.eta, schedule.min_psnr)
