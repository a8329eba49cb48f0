"""PhotoGuard's encoder attack (Salman et al. 2023, arXiv 2302.06588, section 3.1): latents towards a grey picture's.

Gradient ascent on minus ||E(x + delta) - E(grey)||^2, with the posterior's mean as E. The attack on the whole diffusion
process (section 3.2) is left out.
"""

import torch
from torch import Generator, Tensor

from dladiff.baselines.latent_start import small_start
from dladiff.baselines.task import Task
from dladiff.baselines.trainable import ascend
from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="photoguard",
    function="photoguard",
    paper="Salman et al. 2023",
    year=2023,
    maximises="minus the squared distance between the latents and those of a grey picture",
    schedule=BaselineConfig(eta=16 * PX, step_size=2 * PX, steps=200),
    tiny={"steps": 48},
)

GREY = 0.5
"""Level of the target picture, [0, 1]."""


def grey_latents(surrogate: Surrogate, like: Images) -> Tensor:
    """Return the posterior's mean `1 c h w` of a grey picture of the size of `like`, unscaled."""
    mean: Tensor = surrogate.encode_fixed(torch.full_like(like[:1], GREY), 1).mean
    return mean


def photoguard_loss(surrogate: Surrogate, point: Images, target: Tensor) -> Tensor:
    """Return minus the squared distance of the latents' means to the target, summed over the squares."""
    return -(surrogate.encode(point).mean.float() - target).square().sum()


def photoguard(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; clean photos and `shared_generator` are not used."""
    surrogate, target = task.surrogate, grey_latents(task.surrogate, task.x)

    def loss(point: Images, _: list[Generator]) -> Tensor:
        return photoguard_loss(surrogate, point, target)

    return ascend(task.x, small_start(task), loss, task.schedule, task.generators, task.schedule.steps)
