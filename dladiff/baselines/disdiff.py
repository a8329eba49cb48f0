"""DisDiff (Liu et al. 2024): ASPL plus attention erasure for `sks`, timestep search, adapted step sizes.

Cross-attention erasure: L_cond minus `weight` times the energy of the token's maps. Merit sampling: a step at timestep
t is 0.5 (1 + cos(pi t / 999)) of the full one. The timesteps come from SimAC's greedy search (Wang et al. 2024), which
DisDiff builds on.
"""

import math
from functools import partial

import torch
from torch import Generator, Tensor

from dladiff.baselines.aspl import alternate
from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate
from dladiff.core.ball import around
from dladiff.core.pgd import gradient_of, pgd
from dladiff.core.pixels import Images
from dladiff.diffusion.attention import Maps
from dladiff.diffusion.surrogate import Noise
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="disdiff",
    function="disdiff",
    paper="Liu et al. 2024",
    year=2024,
    maximises="L_cond - 0.1 x energy of the `sks` map, with ASPL's alternation, a step size that shrinks with t, "
    "timesteps from SimAC's search",
    schedule=BaselineConfig(eta=6.4 * PX, epochs=50, steps=6, training=3, lr=5e-7, weight=0.1, search=50),
    tiny={"epochs": 8, "lr": 2e-4, "search": 8},
)

CANDIDATES, NEIGHBOURS, MIN_LEFT = 5, 20, 100
"""Search: timesteps compared in a round; neighbours removed on each side of the worst; smallest number kept."""


def step_scale(t: int, last: int) -> float:
    """Return the factor of the step size at timestep t of 0..last."""
    return 0.5 * (1 + math.cos(math.pi * t / last))


def energy(maps: Maps, tokens: list[int]) -> Tensor:
    """Return the mean over layers and photos of the squared Frobenius norm of the tokens' cross-attention maps."""
    found = [layer.attention_map()[..., tokens].float().square().sum((1, 2)).mean() for layer in maps.cross]
    return torch.stack(found).mean()


def disdiff_loss(trainable: TrainableSurrogate, point: Images, noise: Noise, schedule: BaselineConfig) -> Tensor:
    """Return L_cond - weight * energy, summed over the squares."""
    instance = trainable.surrogate.prompt(trainable.prompt_text).instance
    with trainable.surrogate.autocast():
        out, maps = trainable.denoising_and_maps(point, noise, schedule.attention_resolution)
        tokens = [] if instance is None else [instance]
        return (out - schedule.weight * energy(maps, tokens)) * len(point)


def timesteps(trainable: TrainableSurrogate, x: Images, schedule: BaselineConfig, generator: Generator) -> list[int]:
    """Return the timesteps that SimAC's greedy search keeps for one square `1 3 r r`.

    Each round draws five timesteps and removes the one with the smallest gradient, with its neighbours.
    """
    left = list(range(1, len(trainable.surrogate.alphas)))
    for _ in range(schedule.search):
        if len(left) <= MIN_LEFT:
            break
        chosen = [left[i] for i in torch.randperm(len(left), generator=generator)[:CANDIDATES].tolist()]
        sizes = []
        for t in chosen:
            point = x.detach().clone().requires_grad_(True)
            noise = _at(trainable.surrogate.draw([generator], x.shape[-1]), t)
            (gradient,) = torch.autograd.grad(trainable.denoising_at(point, noise), point)
            sizes.append(float(gradient.abs().sum()))
        worst = chosen[sizes.index(min(sizes))]
        left = [t for t in left if abs(t - worst) > NEIGHBOURS]
    return left


def disdiff(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""
    surrogate, x, schedule, generators = task.surrogate, task.x, task.schedule, task.generators
    trainable, last = TrainableSurrogate(surrogate, schedule.prompt), len(surrogate.alphas) - 1
    chosen = [timesteps(trainable, x[i : i + 1], schedule, own) for i, own in enumerate(generators)]

    def attack(copy: TrainableSurrogate, delta: Tensor) -> Tensor:
        rows = []
        for i, own in enumerate(generators):
            square, row = x[i : i + 1], delta[i : i + 1]
            for _ in range(schedule.steps):
                t = chosen[i][int(torch.randint(len(chosen[i]), (1,), generator=own))]
                noise = _at(surrogate.draw([own], x.shape[-1]), t)
                row = pgd(
                    square,
                    row,
                    gradient_of(partial(disdiff_loss, copy, noise=noise, schedule=schedule)),
                    projection=around(square, schedule.eta, schedule.min_psnr),
                    step_size=schedule.step_size * step_scale(t, last),
                    steps=1,
                )
            rows.append(row)
        return torch.cat(rows)

    return alternate(trainable, task, attack)


def _at(noise: Noise, t: int) -> Noise:
    return Noise(torch.full_like(noise.t, t), noise.latent, noise.posterior)
