"""Anti-Diffusion (Zheng et al. 2025): a tuned prompt, and a loss that also reduces all cross-attention.

Photo by photo. A prompt embedding that starts from the empty prompt is tuned to the photo (section "Prompt tuning");
then epochs of PGD on L_cond - L_sem (semantic disturbance loss) and short trainings of the UNet on the result.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate
from dladiff.core.ball import around, project
from dladiff.core.pgd import gradient_of, pgd
from dladiff.core.pixels import Images
from dladiff.diffusion.attention import Maps
from dladiff.diffusion.surrogate import Prompt, Surrogate
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="anti-diffusion",
    function="anti_diffusion",
    paper="Zheng et al. 2025",
    year=2025,
    maximises="L_cond - mean square of all cross maps, with a tuned prompt, for each photo separately",
    schedule=BaselineConfig(
        eta=6 * 1.3 * PX, step_size=0.26 * PX, epochs=6, steps=10, training=20, lr=5e-7, prompt_steps=30, prompt_lr=1e-3
    ),
    tiny={"training": 5, "lr": 2e-4, "prompt_steps": 10, "prompt_lr": 1e-2},
)

SCALE = 100.0
"""The maps are scaled by this and clipped at 1, as in the authors' program."""


class TunedPrompt(TrainableSurrogate):
    """A trainable UNet with a tuned prompt embedding instead of the text encoder's."""

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__(surrogate, "")
        with torch.no_grad():
            self.tuned = super().prompt()

    def prompt(self) -> Prompt:
        """Return the tuned embedding `1 n d`."""
        return self.tuned

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the UNet's weights."""
        return list(self.unet.parameters())

    def tune(self, point: Images, schedule: BaselineConfig, generator: Generator) -> None:
        """Take `schedule.prompt_steps` AdamW steps of L_cond on the embedding."""
        embedding = self.tuned.embedding.clone().requires_grad_(True)
        self.tuned = replace(self.tuned, embedding=embedding)
        optimiser = torch.optim.AdamW([embedding], lr=schedule.prompt_lr)
        for _ in range(schedule.prompt_steps):
            optimiser.zero_grad(set_to_none=True)
            self.denoising(point, [generator]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        self.tuned = replace(self.tuned, embedding=embedding.detach())


def disturbance(maps: Maps) -> Tensor:
    """Return L_sem: the mean square of the scaled cross-attention maps, averaged over layers first."""
    mean = torch.stack([layer.attention_map() for layer in maps.cross]).mean(0)
    return (mean.float() * SCALE).clamp(0, 1).square().mean()


def anti_diffusion_loss(
    trainable: TrainableSurrogate, point: Images, generators: list[Generator], schedule: BaselineConfig
) -> Tensor:
    """Return L_cond - L_sem, summed over the squares."""
    noise = trainable.surrogate.draw(generators, point.shape[-1])
    with trainable.surrogate.autocast():
        out, maps = trainable.denoising_and_maps(point, noise, schedule.attention_resolution)
        return (out - disturbance(maps)) * len(point)


def anti_diffusion(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; clean photos and `shared_generator` are not used.

    Each epoch is bounded by `eta / epochs` around its start, as published, and the whole by `eta` around the photo.
    """
    surrogate, x, schedule, generators = task.surrogate, task.x, task.schedule, task.generators
    rows = []
    for i, own in enumerate(generators):
        square, trainable = x[i : i + 1], TunedPrompt(surrogate)
        delta = torch.zeros_like(square)
        for epoch in range(schedule.epochs):
            trainable.tune(square + delta, schedule, own)
            if epoch:
                trainable.train(square + delta, schedule, own)
            start = square + delta
            added = pgd(
                start,
                torch.zeros_like(start),
                gradient_of(partial(anti_diffusion_loss, trainable, generators=[own], schedule=schedule)),
                projection=around(start, schedule.eta / schedule.epochs),
                step_size=schedule.step_size,
                steps=schedule.steps,
            )
            delta = project(delta + added, square, schedule.eta, schedule.min_psnr)
        rows.append(delta)
    return torch.cat(rows)
