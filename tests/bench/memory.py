"""GPU memory of layer 1 on SD 2.1 and on transformers, counted without a GPU: `python -m tests.bench.memory`.

The real code runs on tensors that have sizes and no values, those of a CUDA run: fp32 weights, bf16 autocast, a VAE in
bf16, fused attention. What the networks, gradients, moments and inner values take at their peak is counted, byte for
byte. Not counted: CUDA's own, the libraries' workspaces, the allocator's gaps, and what recorded steps keep.
"""

from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dladiff.diffusion.surrogate import Surrogate
from dladiff.diffusion.text import Prompt
from dladiff.layers.finetuning import perturb, static_surrogate
from dladiff.settings.presets import GPU_MEMORY
from dladiff.settings.schema import FinetuningConfig
from tests.bench.counter import ELSEWHERE, GIB, Counter, replaced
from tests.bench.transformer_memory import transformer_table

UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def weightless() -> Surrogate:
    """Return Stable Diffusion 2.1 as it is resident on a GPU, without values; the pretrained weights lie elsewhere."""
    surrogate = Surrogate.__new__(Surrogate)
    surrogate.device, surrogate.host = torch.device("cpu"), ELSEWHERE
    surrogate.use_bf16, surrogate.use_cuda_graphs = True, False
    surrogate.unet = UNet2DConditionModel(**UNET).eval().requires_grad_(False).to(ELSEWHERE)
    surrogate.vae = AutoencoderKL(**VAE).eval().requires_grad_(False).bfloat16()
    surrogate.trainable = surrogate.frozen_copy = surrogate.low_rank = surrogate.prior = None
    surrogate.prompts = {FinetuningConfig().prompt: Prompt(torch.zeros(1, 77, UNET["cross_attention_dim"]), 4)}
    surrogate.alphas = torch.linspace(1, 0, 1000)
    surrogate.prediction = "epsilon"
    return surrogate


def peaks(config: FinetuningConfig, photos: int) -> tuple[float, float]:
    """Return the most memory, GiB, that the static surrogate's training and the perturbation hold at once."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", replaced))
        counter = stack.enter_context(Counter())
        surrogate = weightless()
        x, streams = torch.zeros(photos, 3, 512, 512), [torch.Generator() for _ in range(photos)]
        static = static_surrogate(surrogate, x, config, streams[0])
        first, counter.peak = counter.peak, counter.now
        perturb(surrogate, static, x, config, streams)
        return first / GIB, counter.peak / GIB


def latent_peak(views: int) -> float:
    """Return the most memory, GiB, that a step of the latent push holds with a VAE of SD's size, at 512 px."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch.object(nn.Module, "_apply", replaced))
        counter = stack.enter_context(Counter())
        vae = AutoencoderKL(**VAE).eval().requires_grad_(False).bfloat16()
        vae.decoder = nn.Identity()
        counter.peak = counter.now
        point = torch.zeros(views, 3, 512, 512).requires_grad_(True)
        torch.autograd.grad(vae.encode(point.bfloat16()).latent_dist.mean.float().square().sum(), point)
        return counter.peak / GIB


def shortened(config: FinetuningConfig) -> FinetuningConfig:
    """Return as few steps as reach the peaks: a second training step meets the moments of the first."""
    return config.replaced(iter_ft=2, iter_opt=2, iter_1=1, iter_2=1, iter_3=2)


def main() -> None:
    """Print a table: each `gpu_memory` and none, with whole weights and with low-rank surrogates."""
    table = Table("gpu_memory", "photos", "settings", "static surrogate GiB", "perturbation GiB")
    layers = {"": {"finetuning": {}}, **GPU_MEMORY}
    layers |= {f"{name} ": {"finetuning": {**layers[name]["finetuning"], "surrogate": "lora"}} for name in ("", "24GB")}
    for gpu_memory, layer in layers.items():
        config = shortened(FinetuningConfig(**layer["finetuning"]))
        settings = ", ".join(f"{k} {v}" for k, v in layer["finetuning"].items())
        table.add_row(gpu_memory or "-", "4", settings or "-", *(f"{peak:.1f}" for peak in peaks(config, 4)))
    Console(width=120).print(table)
    latent = Table("latent push, views in a step", "GiB")
    for views in (1, 2, 4):
        latent.add_row(str(views), f"{latent_peak(views):.1f}")
    Console(width=120).print(latent)
    for transformer in transformer_table():
        Console(width=120).print(transformer)


if __name__ == "__main__":
    main()
