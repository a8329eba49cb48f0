"""FSMG of Anti-DreamBooth (Van Le et al. 2023, section 4.2): ascend L_cond of a model tuned on the clean photos."""

import torch
from torch import Tensor

from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate, ascend
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="fsmg",
    function="fsmg",
    paper="Van Le et al. 2023",
    year=2023,
    maximises="L_cond of a model fine-tuned on the clean photos",
    schedule=BaselineConfig(eta=6.4 * PX, steps=100, training=1000, lr=5e-7),
    tiny={"steps": 48, "training": 160, "lr": 5e-4},
)


def fsmg(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""
    schedule = task.schedule
    trainable = TrainableSurrogate(task.surrogate, schedule.prompt)
    trainable.train(task.clean, schedule, task.shared_generator)
    return ascend(task.x, torch.zeros_like(task.x), trainable.denoising, schedule, task.generators, schedule.steps)
