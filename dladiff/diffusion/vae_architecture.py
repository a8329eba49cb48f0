"""Architecture of a VAE's folder, read from its configuration; `complete.vae_faults` checks its weights.

Supported are the VAEs of the base models in `vae_catalogue`, and AutoencoderTiny. Imports no torch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dladiff.diffusion.model_facts import SCALING, size_fault
from dladiff.diffusion.model_json import quoted, read_object
from dladiff.errors import ModelError

KL, FLUX2, QWEN, TINY = "AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "AutoencoderTiny"
KINDS = (KL, FLUX2, QWEN, TINY)
MAX_CHANNELS = 8192
"""Largest number of channels of a layer; FLUX.2's VAE, the widest known, has 512."""
MAX_LEVELS = 6
"""Largest number of halvings of the picture; the known VAEs have three."""
PATCH = 2
"""Side of the patches of latents that FLUX.2's batch normalisation takes."""


@dataclass(frozen=True, kw_only=True)
class VaeArchitecture:
    """Properties in which VAEs differ."""

    kind: str
    """Class in diffusers."""
    channels: int
    """Channels of its latents, as the encoder gives them."""
    factor: int
    """Side of a latent cell, pixels; sides of the picture must be multiples of it."""
    scaling: float


def read_vae(folder: Path) -> VaeArchitecture:
    """Return the architecture of the VAE in a folder. Raises ModelError: names what is not supported."""
    config = read_object(folder / "config.json")
    try:
        kind = config.get("_class_name")
        if kind not in KINDS:
            name = f"a {quoted(kind)}" if kind else "of unknown kind"
            raise ModelError(f"the VAE in {folder} is {name}; supported are {', '.join(KINDS)}")
        if fault := size_fault(config) or next(_faults(config, kind), None):
            raise ModelError(f"the VAE in {folder} is not supported: its config.json {fault}")
        return _architecture(config, kind)
    except (TypeError, AttributeError, ValueError, LookupError, OverflowError) as error:
        raise ModelError(f"the VAE in {folder} has settings of a wrong type; fetch it again") from error


def _architecture(config: dict[str, Any], kind: str) -> VaeArchitecture:
    channels = _channels(config, kind)
    levels = len(_levels(config, kind)) - 1
    factor = 2**levels * (PATCH if kind == FLUX2 else 1)
    default = {KL: SCALING, TINY: 1.0}.get(kind, 1.0)
    return VaeArchitecture(kind=kind, channels=channels, factor=factor, scaling=config.get("scaling_factor") or default)


def _channels(config: dict[str, Any], kind: str) -> int:
    found = config.get("z_dim", 16) if kind == QWEN else config.get("latent_channels", 32 if kind == FLUX2 else 4)
    if type(found) is not int:
        raise TypeError
    return found


def _levels(config: dict[str, Any], kind: str) -> list[int]:
    if kind == QWEN:
        base, factors = config.get("base_dim", 96), config.get("dim_mult", [1, 2, 4, 4])
        return [base * factor for factor in factors]
    name = "encoder_block_out_channels" if kind == TINY else "block_out_channels"
    default = {KL: [64], FLUX2: [128, 256, 512, 512], TINY: [64, 64, 64, 64]}[kind]
    return [*config.get(name, default)]


def _faults(config: dict[str, Any], kind: str) -> Iterator[str]:
    """Yield what of a configuration is impossible: loaders build a network of any size before they read weights."""
    channels, widths = _channels(config, kind), _levels(config, kind)
    other = config.get("decoder_block_out_channels") or []
    wide = [width for width in (*widths, *other, channels) if type(width) is not int or not 0 < width <= MAX_CHANNELS]
    if wide:
        yield f"has {quoted(wide[0])} channels in a layer, 1 to {MAX_CHANNELS} are read"
    if not 0 < len(widths) <= MAX_LEVELS + 1:
        yield f"has {len(widths)} levels, at most {MAX_LEVELS + 1} are read"
    taken = config.get("input_channels" if kind == QWEN else "in_channels", 3)
    if taken != 3:
        yield f"takes {quoted(taken)} channels, not the 3 of a photo"
    if kind == QWEN and len(config.get("temperal_downsample", [0, 1, 1])) != len(widths) - 1:
        yield "has another number of halvings in temperal_downsample than in dim_mult"
    if kind == FLUX2 and [*config.get("patch_size", [PATCH, PATCH])] != [PATCH, PATCH]:
        yield f"has patches of {quoted(config['patch_size'])}, {PATCH} x {PATCH} are read"
    yield from _number_faults(config, channels)


def _number_faults(config: dict[str, Any], channels: int) -> Iterator[str]:
    for name in ("scaling_factor", "shift_factor"):
        value = config.get(name)
        if value is not None and (type(value) not in (int, float) or (name == "scaling_factor" and not value > 0)):
            yield f"has the {name} {quoted(value)}"
    for name in ("latents_mean", "latents_std"):
        values = config.get(name)
        if values is None:
            continue
        if len(values) != channels or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
            yield f"has {len(values)} numbers in {name} for {channels} channels"
        elif name == "latents_std" and min(values) <= 0:
            yield f"has a {name} of {min(values)}"
