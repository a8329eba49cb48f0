"""MetaCloak (Liu et al. 2024, arXiv 2311.13127): a pool of surrogates, a look-ahead and random transforms.

Section 3 of the paper. One surrogate is fine-tuned on the clean photos; its states after every `interval` steps are the
pool. A trail (`epochs`) takes each state in turn. While that surrogate trains on the perturbed photos, PGD raises the
denoising loss of a copy that is one training step ahead, on a random transform of the photos (EOT).

Simplified: one base model, as in the paper's main experiments; one transform a step, of the paper's blur and mirror;
first-order gradients, so the look-ahead step is a constant in them; no second loss beside the denoising error.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate, ascend
from dladiff.core.pixels import Images
from dladiff.core.transforms import blur, mirror
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="metacloak",
    function="metacloak",
    paper="Liu et al. 2024",
    year=2024,
    maximises="L_cond on blurred and mirrored photos, of a pool of surrogates that train on the result",
    schedule=BaselineConfig(
        eta=11 * PX, step_size=1.1 * PX, epochs=4, steps=6, training=2, lr=5e-7, pool=5, interval=200
    ),
    tiny={"epochs": 1, "training": 20, "lr": 5e-4, "pool": 4, "interval": 40},
)

AHEAD = 1
"""Training steps by which the attacked copy is ahead."""
SIGMA, SIDE = (0.1, 2.0), 512
"""Range of the blur's standard deviation, pixels of a square of this side."""
State = list[dict[str, Tensor]]
"""Weights of UNet and text encoders, in the host's memory."""


def modules(trainable: TrainableSurrogate) -> list[nn.Module]:
    """Return the networks of a surrogate that its training changes."""
    return [trainable.unet, *(text.network for text in trainable.texts)]


def surrogate_pool(trainable: TrainableSurrogate, task: Task) -> list[State]:
    """Train on the clean photos; return the state after every `interval` steps, `pool` states in all."""
    states = []
    for _ in range(task.schedule.pool):
        trainable.train(task.clean, task.schedule.replaced(training=task.schedule.interval), task.shared_generator)
        states.append([{k: v.to("cpu", copy=True) for k, v in m.state_dict().items()} for m in modules(trainable)])
    return states


def transformed(images: Images, generator: Generator) -> Images:
    """Return the images blurred by a random standard deviation and, with probability 1/2, mirrored."""
    strength, side = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    sigma = (SIGMA[0] + strength * (SIGMA[1] - SIGMA[0])) * images.shape[-1] / SIDE
    blurred = blur(images, sigma)
    return mirror(blurred) if side < 0.5 else blurred


def metacloak_loss(
    trainable: TrainableSurrogate,
    point: Images,
    generators: list[Generator],
    transform: Callable[[Images, Generator], Images] = transformed,
) -> Tensor:
    """Return L_cond of each square after a transform of its own, summed over the squares."""
    parts = [transform(part, own) for part, own in zip(torch.split(point, 1), generators, strict=True)]
    return trainable.denoising(torch.cat(parts), generators)


def metacloak(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""
    schedule, shared = task.schedule, task.shared_generator
    trainable = TrainableSurrogate(task.surrogate, schedule.prompt)
    pool = surrogate_pool(trainable, task)
    delta = torch.zeros_like(task.x)
    turns = max(1, schedule.interval // max(1, schedule.training))
    for state in pool * schedule.epochs:
        for module, weights in zip(modules(trainable), state, strict=True):
            module.load_state_dict(weights)
        for _ in range(turns):
            copy = trainable.clone()
            copy.train(task.x + delta, schedule.replaced(training=AHEAD), shared)

            def loss(point: Images, own: list[Generator], copy: Any = copy) -> Tensor:
                return metacloak_loss(copy, point, own)

            delta = ascend(task.x, delta, loss, schedule, task.generators, schedule.steps)
            trainable.train(task.x + delta, schedule, shared)
    return delta
