"""A surrogate that compared methods train: copies of UNet and text encoders, AdamW, the loss of DreamBooth."""

import copy
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor, nn

from dladiff.core.ball import around
from dladiff.core.pgd import gradient_of, pgd
from dladiff.core.pixels import Images
from dladiff.diffusion.attention import MapReader, Maps
from dladiff.diffusion.surrogate import Noise, Surrogate
from dladiff.diffusion.text import Prompt, TextEncoder, embed
from dladiff.settings.schedules import BaselineConfig

SquareLoss = Callable[[Tensor, list[Generator]], Tensor]
"""Maps (x + delta `b 3 r r`, one random stream for each square) to the scalar that PGD ascends."""


class TrainableSurrogate:
    """Copies of the pretrained UNet and text encoders, frozen except during `train`."""

    def __init__(self, surrogate: Surrogate, prompt: str) -> None:
        self.surrogate, self.prompt_text = surrogate, prompt
        self.unet: UNet2DConditionModel = copy.deepcopy(surrogate.unet).to(surrogate.device)
        self.texts: list[TextEncoder] = copy.deepcopy(surrogate.encoders)
        for text in self.texts:
            text.network.to(surrogate.device)

    def prompt(self) -> Prompt:
        """Return the prompt's conditioning by the current text encoders."""
        return embed(self.texts, self.prompt_text)

    def parameters(self) -> list[nn.Parameter]:
        """Return the weights that `train` updates."""
        return [*self.unet.parameters(), *(p for text in self.texts for p in text.network.parameters())]

    def clone(self) -> "TrainableSurrogate":
        """Return a copy with weights of its own."""
        other = copy.copy(self)
        other.unet, other.texts = copy.deepcopy(self.unet), copy.deepcopy(self.texts)
        return other

    def latents(self, point: Images, noise: Noise) -> Tensor:
        """Return the scaled latents `b c h w` of squares in [0, 1]."""
        return self.surrogate.latents(self.surrogate.encode(point), noise)

    def denoising(self, point: Images, generators: list[Generator]) -> Tensor:
        """Return L_cond (Eq. 3) at fresh timesteps and noise, summed over the squares."""
        noise = self.surrogate.draw(generators, point.shape[-1])
        return self.denoising_at(point, noise)

    def denoising_at(self, point: Images, noise: Noise) -> Tensor:
        """Return L_cond at given timesteps and noise, summed over the squares."""
        with self.surrogate.autocast():
            loss = self.surrogate.loss(self.unet, self.latents(point, noise), noise, self.prompt())
        return loss * len(point)

    def denoising_and_maps(self, point: Images, noise: Noise, side: int) -> tuple[Tensor, Maps]:
        """Return L_cond (mean over the squares) and the attention maps of `side` x `side` cells, from one pass."""
        losses: list[Tensor] = []
        prompt = self.prompt()

        def forward() -> None:
            losses.append(self.surrogate.loss(self.unet, self.latents(point, noise), noise, prompt))

        maps = MapReader(side)(self.unet, forward)  # a fresh one: its first pass runs the whole UNet
        return losses[0], maps

    def train(self, images: Images, schedule: BaselineConfig, generator: Generator) -> None:
        """Take `schedule.training` AdamW steps of L_db, one photo a step, with a fresh optimiser.

        As Anti-DreamBooth, section 4, trains its surrogate. Includes the prior term if there are class images.
        """
        weights = self.parameters()
        for parameter in weights:
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=1e-2)
        posterior = self.surrogate.encode_fixed(images, schedule.batch)
        for step in range(schedule.training):
            noise = self.surrogate.draw([generator], images.shape[-1])
            latents = self.surrogate.latents(posterior.pick([step % len(images)]), noise)
            prior = self.surrogate.prior_batch([generator])
            with self.surrogate.autocast():
                loss = self.surrogate.loss(self.unet, latents, noise, self.prompt())
                if prior is not None:
                    other = self.surrogate.loss(self.unet, prior.latents, prior.noise, prior.prompt)
                    loss = loss + schedule.prior_weight * other
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for parameter in weights:
            parameter.requires_grad_(False)


def ascend(
    x: Images, delta: Tensor, loss: SquareLoss, schedule: BaselineConfig, generators: list[Generator], steps: int
) -> Tensor:
    """Take `steps` PGD steps for all squares, `schedule.batch` at a time; the batch size does not change the result."""
    parts = []
    for start in range(0, len(x), schedule.batch):
        part = slice(start, start + schedule.batch)
        parts.append(
            pgd(
                x[part],
                delta[part],
                gradient_of(lambda point, own=generators[part]: loss(point, own)),  # type: ignore[misc]
                projection=around(x[part], schedule.eta, schedule.min_psnr),
                step_size=schedule.step_size,
                steps=steps,
            )
        )
    return torch.cat(parts)
