"""Compared methods by name: the one entry that layer 1 calls in place of its own."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from dladiff.baselines.ace import ace
from dladiff.baselines.anti_diffusion import anti_diffusion
from dladiff.baselines.aspl import aspl
from dladiff.baselines.caat import caat
from dladiff.baselines.disdiff import disdiff
from dladiff.baselines.fsmg import fsmg
from dladiff.baselines.mist import mist
from dladiff.baselines.random_signs import random_signs
from dladiff.baselines.task import Task
from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import schedule_for
from dladiff.settings.schema import MethodConfig

Method = Callable[[Task], Tensor]


def none(task: Task) -> Tensor:
    """Leave the photos as they are."""
    return torch.zeros_like(task.x)


METHODS: dict[str, Method] = {
    "fsmg": fsmg,
    "aspl": aspl,
    "disdiff": disdiff,
    "anti-diffusion": anti_diffusion,
    "mist": mist,
    "caat": caat,
    "ace": ace,
    "random": random_signs,
    "none": none,
}


def compared_layer(
    surrogate: Surrogate, clean: Images, x: Images, config: MethodConfig, generators: list[Generator], one: Generator
) -> Tensor:
    """Return the perturbation by `config.protection`: its own schedule, with layer 1's bounds, prompt and batch."""
    layer = config.finetuning
    own = schedule_for(config.protection, config.model)
    schedule = own.replaced(
        eta=layer.eta,
        least_psnr=layer.least_psnr or own.least_psnr,
        batch=layer.batch_photos,
        attention_resolution=layer.attention_resolution,
        prompt=layer.prompt,
        prior_weight=layer.prior_weight,
    )
    return METHODS[config.protection](Task(surrogate, clean, x, schedule, generators, one))
