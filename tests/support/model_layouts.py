"""Models in the exact layouts of SD 1.5, 2.1, 2.1 at 768 px and SDXL, with few channels and random weights.

Blocks, layers, heads, prediction types and file names are those of the published models; widths are a fraction.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dladiff.diffusion.surrogate import EMBEDDED

CROSS, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD: dict[str, Any] = {
    "down_block_types": (CROSS, CROSS, CROSS, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP),
    "layers_per_block": 2,
}
SD21 = SD | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 32, "use_linear_projection": True}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": SD | {"block_out_channels": (16, 32, 64, 64), "attention_head_dim": 8, "cross_attention_dim": 24},
    "sd21": SD21 | {"block_out_channels": (20, 40, 80, 80)},
    "sd21-768": SD21 | {"block_out_channels": (20, 40, 80, 80), "upcast_attention": True},
    "sdxl": {
        "block_out_channels": (20, 40, 80),
        "down_block_types": ("DownBlock2D", CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
    },
}
VIT_L = {"hidden_size": 24, "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "quick_gelu"}
VIT_H = {"hidden_size": 32, "num_attention_heads": 16, "num_hidden_layers": 23, "hidden_act": "gelu"}
VIT_G = {"hidden_size": 40, "num_attention_heads": 20, "num_hidden_layers": 32, "hidden_act": "gelu"}
TEXTS: dict[str, list[dict[str, Any]]] = {
    "sd15": [VIT_L],
    "sd21": [VIT_H],
    "sd21-768": [VIT_H],
    "sdxl": [VIT_L, VIT_G | {"projection_dim": 40}],
}
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "trained_betas": None,
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd15": {"_class_name": "PNDMScheduler"},  # as published: no prediction_type
    "sd21": {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    "sd21-768": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"},
}


def write_layout(folder: Path, name: str) -> Path:
    """Write a model in the layout of a profile."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(norm_num_groups=4, sample_size=64, **UNETS[name])
    scaling = 0.13025 if name == "sdxl" else 0.18215
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=scaling,
        force_upcast=name == "sdxl",
    )
    texts: list[Any] = []
    for settings, kind in zip(TEXTS[name], (CLIPTextModel, CLIPTextModelWithProjection), strict=False):
        base = json.loads((EMBEDDED / "text_encoder" / "config.json").read_text())
        config = base | {"intermediate_size": 4 * settings["hidden_size"], "dtype": "float32"} | settings
        texts.append(kind(CLIPTextConfig(**config)))
    return write_parts(folder, name, unet, vae, texts)


def write_parts(folder: Path, name: str, unet: Any, vae: Any, texts: list[Any]) -> Path:
    """Write the networks, tokenizers, schedule and index as they are published."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if len(texts) == 2 else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", SCHEDULERS[name]["_class_name"]],
    }
    if len(texts) == 1:
        empty = [None, None]
        index |= {"safety_checker": empty, "feature_extractor": empty, "requires_safety_checker": False}
    for ending, text in zip(("", "_2"), texts, strict=False):
        text.save_pretrained(folder / f"text_encoder{ending}")
        shutil.copytree(EMBEDDED / "tokenizer", folder / f"tokenizer{ending}")
        index[f"text_encoder{ending}"] = ["transformers", type(text).__name__]
        index[f"tokenizer{ending}"] = ["transformers", "CLIPTokenizer"]
    if len(texts) == 2:  # SDXL pads its second prompt with "!"
        change_json(folder / "tokenizer_2" / "tokenizer_config.json", pad_token="!")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULE | SCHEDULERS[name]))
    (folder / "model_index.json").write_text(json.dumps(index))
    if name != "sdxl":  # as published: the factor is AutoencoderKL's default
        change_json(folder / "vae" / "config.json", scaling_factor=None)
    return folder


def change_json(file: Path, **values: Any) -> None:
    """Set entries of a JSON file; None takes one out."""
    found = {key: value for key, value in (json.loads(file.read_text()) | values).items() if value is not None}
    file.write_text(json.dumps(found))
