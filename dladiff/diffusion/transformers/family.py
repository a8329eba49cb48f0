"""What the families of transformers differ in, for `FlowSurrogate`."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from dladiff.diffusion.text import Prompt
from dladiff.diffusion.transformers.joint_attention import Recorder
from dladiff.diffusion.transformers.text import Texts


class Family(ABC):
    """One family of transformers: its text, its call and its attention layers."""

    logit_normal: bool = False
    """Whether its training draws times from the logit-normal distribution; else uniform."""
    mean_latents: bool = False
    """Whether its training takes the posterior's mean; else a sample."""
    layers: tuple[str, ...]
    """Ends of the names of the layers that diffusers' DreamBooth-LoRA script for this family trains."""

    @abstractmethod
    def prompt(self, texts: Texts, text: str) -> Prompt:
        """Return a prompt's conditioning, computed like the pipeline of diffusers."""

    @abstractmethod
    def velocity(self, network: Any, noisy: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Return the predicted velocity `b c h w` of noised latents at times `b`; the prompt has a row for each."""

    @abstractmethod
    def install(self, network: Any, recorder: Recorder) -> None:
        """Put processors of our own into the network's attention layers."""

    def low_rank_layers(self, network: Any) -> list[str]:
        """Return the names, or their ends, of the layers that get low-rank matrices."""
        return [*self.layers]
