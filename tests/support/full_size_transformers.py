"""The transformers and VAEs at full size, as published: settings in which they differ from their classes' defaults."""

from typing import Any

from tests.support.transformer_layouts import CLASSES

FLUX: dict[str, Any] = {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "pooled_projection_dim": 768}
FULL_SIZE: dict[str, dict[str, Any]] = {
    "sd35": {
        "sample_size": 128,
        "num_layers": 24,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "flux1": FLUX | {"guidance_embeds": True},
    "flux1-schnell": FLUX,
    "flux2-klein": {
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    "qwen-image": {},
}
TEXT: dict[str, tuple[int, int, int]] = {
    "sd35": (333, 4096, 2048),
    "flux1": (512, 4096, 768),
    "flux1-schnell": (512, 4096, 768),
    "flux2-klein": (512, 7680, 0),
    "qwen-image": (20, 3584, 0),
}
"""Tokens of a prompt, their width, and the pooled width; Qwen-Image's prompts have as many tokens as they need."""
KL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
NO_QUANT: dict[str, Any] = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
VAES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "sd35": ("AutoencoderKL", KL | NO_QUANT, 16, 8),
    "flux1": ("AutoencoderKL", KL | NO_QUANT, 16, 8),
    "flux1-schnell": ("AutoencoderKL", KL | NO_QUANT, 16, 8),
    "flux2-klein": ("AutoencoderKLFlux2", {}, 128, 16),
    "qwen-image": ("AutoencoderKLQwenImage", {}, 16, 8),
}
"""Class and settings of the VAE; channels of its latents as the transformer's code sees them, side of a cell, px."""
WEIGHTS: dict[str, int] = {
    "sd35": 2_243_171_520,
    "flux1": 11_901_408_320,
    "flux1-schnell": 11_891_178_560,
    "flux2-klein": 3_875_544_576,
    "qwen-image": 20_430_401_088,
}
"""Weights of the transformer; those of FLUX.1 and Qwen-Image are published, the others are counted here."""
FAMILY = {"sd35": "sd3", "flux1": "flux", "flux1-schnell": "flux", "flux2-klein": "flux2", "qwen-image": "qwen"}


def network_of(profile: str) -> Any:
    """Return the transformer of a profile, on torch's current device."""
    import diffusers

    return getattr(diffusers, CLASSES[profile])(**FULL_SIZE[profile])
