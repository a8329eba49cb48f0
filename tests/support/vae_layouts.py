"""VAEs in the exact layouts of the known ones, with few channels and random weights, written by diffusers' classes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderTiny
from safetensors.torch import load_file

KL: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
}
NO_QUANT: dict[str, Any] = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
LAYOUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vae:sd": (AutoencoderKL, KL | {"latent_channels": 4}),
    "vae:sdxl": (AutoencoderKL, KL | {"latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True}),
    "vae:sd3": (AutoencoderKL, KL | NO_QUANT | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "vae:flux1": (AutoencoderKL, KL | NO_QUANT | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    "vae:flux2": (AutoencoderKLFlux2, KL | {"latent_channels": 32}),
    "vae:qwen": (AutoencoderKLQwenImage, {"base_dim": 8}),
}
"""Name of a known VAE to its class and the settings in which its published configuration differs from the class's."""


def write_vae(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a VAE's folder in the layout of a known one; return the folder."""
    torch.manual_seed(seed)
    kind, settings = LAYOUTS[name]
    network = kind(**settings)
    if name == "vae:flux2":  # the published one holds the statistics of its training
        network.bn.running_mean.normal_()
        network.bn.running_var.uniform_(0.5, 3.0)
    network.save_pretrained(folder)
    return folder


def write_tiny(folder: Path, encoder: Path, decoder: Path) -> Path:
    """Write one of the published small autoencoders as an AutoencoderTiny; return the folder.

    In the published files layers are numbered from 0. The decoder's first layer is a clamp without weights, which
    diffusers has outside of its layers.
    """
    weights = {f"encoder.layers.{name}": tensor for name, tensor in load_file(encoder).items()}
    for name, tensor in load_file(decoder).items():
        number, _, rest = name.partition(".")
        weights[f"decoder.layers.{int(number) - 1}.{rest}"] = tensor
    channels = weights["encoder.layers.14.weight"].shape[0]
    network = AutoencoderTiny(latent_channels=channels)
    network.load_state_dict(weights)
    network.save_pretrained(folder)
    return folder
