"""Mist (Liang and Wu 2023): move the latents towards a pattern's, and ascend the denoising loss.

The fused loss: rate * L_cond - ||E(x + delta) - E(target)||^2, on the pretrained model; nothing is trained.
"""

import torch
from torch import Generator, Tensor

from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate, ascend
from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="mist",
    function="mist",
    paper="Liang and Wu 2023",
    year=2023,
    maximises="1e4 x L_cond - squared distance between the latents and those of a pattern",
    # eta: 16 levels in its paper, 7 in the DLADiff paper
    schedule=BaselineConfig(eta=7 * PX, step_size=PX, steps=100, weight=1e4),
    tiny={"steps": 48},
)


def pattern(like: Images) -> Images:
    """Return the target `1 3 r r`: a repeating pattern of high contrast (here diagonal lines on a checkerboard)."""
    side = like.shape[-1]
    cell = max(2, side // 16)
    rows = torch.arange(side, device=like.device)
    board = ((rows[:, None] // cell + rows[None, :] // cell) % 2).to(like)
    lines = ((rows[:, None] + rows[None, :]) % cell < max(1, cell // 4)).to(like)
    target: Images = (board - lines).abs().expand(1, 3, side, side)
    return target


def mist_loss(
    trainable: TrainableSurrogate, point: Images, target: Tensor, rate: float, generators: list[Generator]
) -> Tensor:
    """Return rate * L_cond - squared distance of the latents' means to the target, summed over the squares."""
    surrogate = trainable.surrogate
    noise = surrogate.draw(generators, point.shape[-1])
    with surrogate.autocast():
        posterior = surrogate.encode(point)
        semantic = surrogate.loss(trainable.unet, surrogate.latents(posterior, noise), noise, trainable.prompt())
    means = posterior.mean.float() * surrogate.vae.config.scaling_factor
    loss: Tensor = rate * semantic * len(point) - (means - target).square().sum()
    return loss


def target_latents(surrogate: Surrogate, like: Images) -> Tensor:
    """Return the pattern's latents `1 c h w`, scaled."""
    latents: Tensor = surrogate.encode_fixed(pattern(like), 1).mean * surrogate.vae.config.scaling_factor
    return latents


def mist(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; clean photos and `shared_generator` are not used."""
    surrogate, x, schedule, generators = task.surrogate, task.x, task.schedule, task.generators
    trainable, target = TrainableSurrogate(surrogate, schedule.prompt), target_latents(surrogate, x)

    def loss(point: Images, own: list[Generator]) -> Tensor:
        return mist_loss(trainable, point, target, schedule.weight, own)

    return ascend(x, torch.zeros_like(x), loss, schedule, generators, schedule.steps)
