"""ACE (Zheng et al. 2025, "Targeted Attack Improves Protection against Unauthorized Diffusion Customization").

ASPL's alternation with a LoRA surrogate and a target: the predicted noise approaches the latents of one fixed pattern
at every timestep, so that all errors of the score function agree. LoRA is applied to the UNet only.
"""

import torch
from peft import LoraConfig
from torch import Generator, Tensor, nn
from torch.nn import functional

from dladiff.baselines.aspl import alternate
from dladiff.baselines.mist import target_latents
from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate, ascend
from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="ace",
    function="ace",
    paper="Zheng et al. 2025",
    year=2025,
    maximises="minus the distance between the predicted noise and a pattern's latents, with ASPL's alternation and "
    "LoRA",
    schedule=BaselineConfig(eta=4 * PX, epochs=5, steps=50, training=10, lr=1e-4, rank=4),
    tiny={"epochs": 4, "steps": 12, "lr": 5e-3},
)


class LowRank(TrainableSurrogate):
    """A UNet that trains low-rank matrices in its attention layers."""

    def __init__(self, surrogate: Surrogate, prompt: str, rank: int, seed: int) -> None:
        super().__init__(surrogate, prompt)
        with torch.random.fork_rng(devices=[]):  # peft draws its first matrices from the global stream
            torch.manual_seed(seed)
            layers = ["to_q", "to_k", "to_v", "to_out.0"]
            self.unet.add_adapter(
                LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers)
            )
        for weight in self.parameters():
            weight.requires_grad_(False)

    def parameters(self) -> list[nn.Parameter]:
        """Return the low-rank matrices."""
        return [weight for name, weight in self.unet.named_parameters() if "lora_" in name]


def ace_loss(trainable: TrainableSurrogate, point: Images, target: Tensor, generators: list[Generator]) -> Tensor:
    """Return minus the mean squared distance of the prediction to the target, summed over the squares."""
    surrogate = trainable.surrogate
    noise = surrogate.draw(generators, point.shape[-1])
    with surrogate.autocast():
        predicted = surrogate.predict(trainable.unet, trainable.latents(point, noise), noise, trainable.prompt())
    return -functional.mse_loss(predicted.float(), target.float().expand_as(predicted)) * len(point)


def ace(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; `clean` is `m 3 r r`."""
    schedule = task.schedule
    seed = int(torch.randint(2**31, (1,), generator=task.shared_generator))
    trainable = LowRank(task.surrogate, schedule.prompt, schedule.rank, seed)
    target = target_latents(task.surrogate, task.x)

    def attack(copy: TrainableSurrogate, delta: Tensor) -> Tensor:
        def loss(point: Images, own: list[Generator]) -> Tensor:
            return ace_loss(copy, point, target, own)

        return ascend(task.x, delta, loss, schedule, task.generators, schedule.steps)

    return alternate(trainable, task, attack)
