"""The control without protection."""

import torch
from torch import Tensor

from dladiff.baselines.task import Task
from dladiff.settings.schedules import BaselineConfig, Method

METHOD = Method(name="none", function="none", maximises="nothing", schedule=BaselineConfig(eta=0.0))


def none(task: Task) -> Tensor:
    """Return a perturbation of zero."""
    return torch.zeros_like(task.x)
