"""PID (Li et al. 2024, arXiv 2406.15305): move mean and variance of the VAE's posterior, without a prompt.

The paper compares several losses of the posterior and recommends this sum: the mean squared shift of its mean, plus the
mean squared shift of its log variance. Neither UNet nor text encoder takes part.
"""

import torch
from torch import Generator, Tensor

from dladiff.baselines.latent_start import small_start
from dladiff.baselines.task import Task
from dladiff.baselines.trainable import ascend
from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Posterior, Surrogate
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="pid",
    function="pid",
    paper="Li et al. 2024",
    year=2024,
    maximises="mean squared shift of the latents' mean, plus that of their log variance; no prompt",
    schedule=BaselineConfig(eta=0.05, step_size=PX, steps=1000),
    tiny={"steps": 48},
)


def pid_loss(surrogate: Surrogate, point: Images, clean: Posterior) -> Tensor:
    """Return the shifts of mean and log variance from the clean posterior, each a mean, summed over the squares."""
    found = surrogate.encode(point)
    mean = (found.mean.float() - clean.mean.float()).square()
    log_variance = (2 * (found.std.float().log() - clean.std.float().log())).square()
    return (mean + log_variance).mean((1, 2, 3)).sum()


def pid(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; clean photos and `shared_generator` are not used."""
    surrogate, x, schedule, start = task.surrogate, task.x, task.schedule, small_start(task)
    rows = []
    for first in range(0, len(x), schedule.batch):
        part = slice(first, first + schedule.batch)
        clean = surrogate.encode_fixed(x[part], schedule.batch)

        def loss(point: Images, _: list[Generator], clean: Posterior = clean) -> Tensor:
            return pid_loss(surrogate, point, clean)

        rows.append(ascend(x[part], start[part], loss, schedule, task.generators[part], schedule.steps))
    return torch.cat(rows)
