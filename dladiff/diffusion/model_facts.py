"""Properties in which supported models differ, and the largest sizes that are read. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from dladiff.diffusion.model_json import quoted

SCALING = 0.18215
"""Default scaling_factor of AutoencoderKL (SD 1.x and 2.x)."""
MAX_NUMBER = 100_000
"""Largest number accepted in a configuration: CLIP's vocabulary has 49,408 entries."""
MAX_LAYERS = 128
"""Largest number of layers, blocks or list entries (SDXL's text encoder has 32 layers). Loaders build any number."""
MAX_DEPTH = 4
"""Deepest nesting of configurations: CLIP's contains its vision tower's."""
LAYERS = (
    "num_layers",
    "num_single_layers",
    "depth",
    "layers_per_block",
    "num_hidden_layers",
    "transformer_layers_per_block",
    "num_encoder_blocks",
    "num_decoder_blocks",
    "num_res_blocks",
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Properties in which supported models differ."""

    context: int
    """Width of the text embedding in the UNet's cross-attention."""
    latent_channels: int
    prediction: str
    """`epsilon` or `v_prediction`; `flow` for transformers."""
    scaling: float
    """Factor of the VAE's latents."""
    text_encoders: int
    """1, or 2 in SDXL."""
    family: str = ""
    """Family of a transformer (`transformer_layouts`); empty for a UNet."""
    layers: int = 0
    """Blocks of a transformer."""
    guidance: bool = False
    """Whether a transformer takes the scale of guidance as an input (guidance-distilled models)."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """The model of a profile."""

    profile: str
    ids: tuple[str, ...]
    """Hub ids in the order that `fetch` tries them: the owner's if it still exists, then mirrors."""
    withdrawn: tuple[str, ...] = ()
    """Former hub ids of the model; caches may still hold it under them."""
    gated: tuple[str, ...] = ()
    """Those of `ids` that ask for an account and its consent to a licence."""
    licence: str
    resolution: int
    """Side of its training images, pixels; of a transformer, at which diffusers' scripts fine-tune it."""
    architecture: Architecture


def size_fault(config: dict[str, Any], depth: int = 0, most: int = MAX_NUMBER) -> str | None:
    """Return the size in a configuration that exceeds a limit, or None.

    Loaders build a network before they read its weights, so sizes must be checked first.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            if depth >= MAX_DEPTH:
                return f"is nested too deep in {quoted(name)}"
            if fault := size_fault(value, depth + 1, most):
                return fault
            continue
        values = value if isinstance(value, list) else [value]
        if len(values) > MAX_LAYERS:
            return f"has {len(values)} entries in {quoted(name)}"
        limit = MAX_LAYERS if name in LAYERS else most
        large = [v for v in values if isinstance(v, int | float) and not abs(v) <= limit]
        if large or (name in LAYERS and any(isinstance(v, list) for v in values)):
            return f"has {quoted(name)} {quoted(large[0] if large else values)}, at most {limit} is read"
    return None
