"""What layer 1 needs of a base model, whatever its network: latents, draws, a prediction and its loss, attention maps.

`Surrogate` is the implementation for UNets, `transformers.FlowSurrogate` that for transformers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from dladiff.core.pixels import Images
from dladiff.diffusion.attention import Maps
from dladiff.diffusion.text import Prompt

ReadMaps = Callable[[Any, Callable[[], object]], Maps]
"""Returns the attention maps of a network; the second argument must run it once."""


@dataclass(frozen=True)
class Noise:
    """Random draws of one forward diffusion: timesteps `b`, latent noise and posterior noise `b c h w`."""

    t: Tensor
    latent: Tensor
    posterior: Tensor

    def pick(self, rows: slice) -> "Noise":
        """Return these images' rows."""
        return Noise(self.t[rows], self.latent[rows], self.posterior[rows])


@dataclass(frozen=True)
class Posterior:
    """The VAE's posterior of images: mean and standard deviation of their latents, `b c h w`.

    Before the scaling factor in a `Surrogate`; normalised as the transformer takes them in a `FlowSurrogate`.
    """

    mean: Tensor
    std: Tensor

    def pick(self, rows: list[int]) -> "Posterior":
        """Return these images' rows."""
        return Posterior(self.mean[rows], self.std[rows])


@dataclass(frozen=True)
class Batch:
    """Input of one training step: scaled latents `b c h w`, their noise, the prompt."""

    latents: Tensor
    noise: Noise
    prompt: Prompt

    def pick(self, rows: slice) -> "Batch":
        """Return these images' rows."""
        return Batch(self.latents[rows], self.noise.pick(rows), self.prompt)


@dataclass(frozen=True)
class Prior:
    """Class images of the prior-preservation term of L_db, encoded once."""

    posterior: Posterior
    prompt: Prompt


class BaseModel(ABC):
    """A pretrained base model, frozen, and the trainable network that its surrogates are."""

    host = torch.device("cpu")
    device: torch.device
    use_bf16: bool
    use_cuda_graphs: bool
    prior: Prior | None = None
    card_fault: str = ""
    """Why `gpu_memory` has no settings for this model; empty: it has."""
    name: str
    sha256: str
    licence: str
    source: str
    revision: str

    @abstractmethod
    def fresh_network(self, rank: int = 0) -> Any:
        """Return the trainable network with the pretrained weights, gradients disabled.

        There is one such network: every call returns the same object and resets its weights. With `rank`, only low-rank
        matrices of it are trainable.
        """

    @abstractmethod
    def freeze(self, network: Any) -> Any:
        """Return the frozen copy with the current weights of `network`; every call returns the same object."""

    @abstractmethod
    def prompt(self, text: str) -> Prompt:
        """Return a prompt's conditioning, encoded at the first call and cached."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """Side of a latent cell in pixels."""

    @abstractmethod
    def map_sides(self, resolution: int) -> list[int]:
        """Return the sides of the network's attention maps at this working resolution, largest first."""

    @abstractmethod
    def map_reader(self, side: int) -> ReadMaps:
        """Return a reader of the attention maps of `side` x `side` cells."""

    @abstractmethod
    def draw(self, generators: list[Generator], resolution: int) -> Noise:
        """Return time and noise, drawn from one stream for each image: draws do not depend on other images."""

    @abstractmethod
    def encode(self, images: Images) -> Posterior:
        """Return the posterior of [0, 1] images."""

    @abstractmethod
    def latents(self, posterior: Posterior, noise: Noise) -> Tensor:
        """Return the latents `b c h w` that the network is trained on, sampled with the given noise."""

    @abstractmethod
    def predict(self, network: Any, latents: Tensor, noise: Noise, prompt: Prompt) -> Tensor:
        """Return the network's prediction for the noised latents."""

    @abstractmethod
    def loss(self, network: Any, latents: Tensor, noise: Noise, prompt: Prompt) -> Tensor:
        """Return L_cond (Eq. 3): the mean squared error of the prediction."""

    @abstractmethod
    def recompute_vae(self, on: bool) -> None:
        """Switch gradient checkpointing of the VAE on or off."""

    def encode_fixed(self, images: Images, size: int) -> Posterior:
        """Return the posterior of [0, 1] images, encoded `size` at a time without gradients, in the images' dtype."""
        with torch.no_grad(), self.autocast():
            parts = [self.encode(part) for part in torch.split(images, size)]
        mean, std = torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])
        return Posterior(mean.to(images.dtype), std.to(images.dtype))

    def set_prior(self, images: Images, prompt: str, batch: int) -> None:
        """Set the class images (`m 3 r r`) of the prior term, shared by all identities of a job."""
        self.prior = Prior(self.encode_fixed(images.to(self.device), batch), self.prompt(prompt))

    def prior_batch(self, generators: list[Generator]) -> Batch | None:
        """Return one class image and its noise from each stream; None, with nothing drawn, without class images."""
        if self.prior is None:
            return None
        count = len(self.prior.posterior.mean)
        rows = [int(torch.randint(count, (1,), generator=g)) for g in generators]
        noise = self.draw(generators, self.prior.posterior.mean.shape[-1] * self.factor)
        return Batch(self.latents(self.prior.posterior.pick(rows), noise), noise, self.prior.prompt)

    def autocast(self) -> torch.autocast:
        """Return the autocast context: bf16 on CUDA, fp32 on the CPU.

        SDXL's VAE overflows in fp16; bf16 has the range of fp32.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bf16)


def recompute(network: Any, on: bool) -> None:
    """Switch gradient checkpointing of a network on or off."""
    if on != network.is_gradient_checkpointing:
        (network.enable_gradient_checkpointing if on else network.disable_gradient_checkpointing)()
