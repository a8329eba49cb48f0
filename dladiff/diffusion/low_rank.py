"""Surrogates as low-rank matrices (LoRA, Hu et al. 2022) on the attention layers of one frozen network.

The static and the dynamic surrogate are two sets of matrices on the same weights, so that neither copies the network,
and AdamW has moments of the matrices alone.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
"""Layers of a UNet with matrices, as in diffusers' train_dreambooth_lora."""
SEED = 0
"""Seed of the first matrices: the same for every identity, as the pretrained weights are."""


class LowRank(nn.Module):
    """One set of matrices on a shared network. Its parameters are the matrices alone; all else is the network's."""

    def __init__(self, unet: Any, name: str, rank: int, layers: Sequence[str] = LAYERS) -> None:
        """Add the matrices `name`; the update's scale (alpha over rank) is 1, and its first value is 0."""
        super().__init__()
        self.name = name
        self.__dict__["unet"] = unet  # not a submodule: its weights are no parameters of this set
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws from the global generator
            torch.manual_seed(SEED)
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two sets are meant
            config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=[*layers])
            unet.add_adapter(config, adapter_name=name)
        for key, module in unet.named_modules():  # the network may be bf16, what is trained is not
            if key.endswith((f".lora_A.{name}", f".lora_B.{name}")):
                module.float()
        own = [p for key, p in unet.named_parameters() if f".{name}." in key and ".lora_" in key]
        self.matrices = nn.ParameterList(own)
        self.first = [p.detach().clone() for p in own]
        self.requires_grad_(False)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the network with this set; peft's switch changes what requires gradients, which is restored."""
        if self.unet.active_adapters() != [self.name]:
            wanted = [p.requires_grad for p in self.matrices]
            self.unet.set_adapter(self.name)
            self.unet.requires_grad_(False)
            for matrix, on in zip(self.matrices, wanted, strict=True):
                matrix.requires_grad_(on)
        return self.unet(*inputs, **named)

    def reset(self) -> "LowRank":
        """Set the matrices to their first values."""
        return self.copied(self.first)

    @torch.no_grad()
    def copied(self, values: list[Tensor]) -> "LowRank":
        """Set the matrices to these values, in place."""
        for matrix, value in zip(self.matrices, values, strict=True):
            matrix.copy_(value)
        return self

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """Yield the network's modules: a reader of attention maps looks for checkpointed ones."""
        return iter(self.unet.modules(remove_duplicate))

    def __getattr__(self, name: str) -> Any:
        """Return the network's own attribute: its configuration, attention processors, gradient checkpointing."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["unet"], name)


def low_rank_pair(unet: UNet2DConditionModel, device: torch.device, rank: int, bf16: bool) -> tuple[LowRank, LowRank]:
    """Return the trainable and the frozen set on one copy of the UNet; with `bf16`, its layers are stored in it."""
    shared = copy.deepcopy(unet)
    if bf16:
        for module in shared.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    return low_rank_sets(shared.to(device), rank, LAYERS)


def low_rank_sets(shared: Any, rank: int, layers: Sequence[str]) -> tuple[LowRank, LowRank]:
    """Return the trainable and the frozen set on `layers` of one network, in fp32 whatever the network's type."""
    return LowRank(shared, "dynamic", rank, layers), LowRank(shared, "static", rank, layers)
