"""Transformer models in the exact layouts of SD 3.5 medium, FLUX.1, FLUX.2 klein and Qwen-Image, with few channels.

Parts, classes, file names, ratios of widths and the attention's kinds are those of the published models. Widths and the
number of blocks are a fraction, weights are random.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from dladiff.diffusion.surrogate import EMBEDDED
from tests.support.model_layouts import VIT_G, VIT_L
from tests.support.vae_layouts import write_vae

HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
DYNAMIC: dict[str, Any] = {
    "use_dynamic_shifting": True, "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096,
    "max_shift": 1.15,
}  # fmt: skip
FLUX: dict[str, Any] = HEADS | {
    "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 64, "pooled_projection_dim": 24,
    "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd35": HEADS | {
        "sample_size": 128, "num_layers": 3, "joint_attention_dim": 64, "caption_projection_dim": 32,
        "pooled_projection_dim": 64, "pos_embed_max_size": 384, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm",
    },
    "flux1": FLUX | {"guidance_embeds": True},
    "flux1-schnell": FLUX,
    "flux2-klein": HEADS | {
        "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 72, "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    },
    "qwen-image": HEADS | {"num_layers": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)},
}  # fmt: skip
PIPELINES = {
    "sd35": "StableDiffusion3Pipeline",
    "flux1": "FluxPipeline",
    "flux1-schnell": "FluxPipeline",
    "flux2-klein": "Flux2KleinPipeline",
    "qwen-image": "QwenImagePipeline",
}
CLASSES = {
    "sd35": "SD3Transformer2DModel",
    "flux1": "FluxTransformer2DModel",
    "flux1-schnell": "FluxTransformer2DModel",
    "flux2-klein": "Flux2Transformer2DModel",
    "qwen-image": "QwenImageTransformer2DModel",
}
VAES = {
    "sd35": "vae:sd3",
    "flux1": "vae:flux1",
    "flux1-schnell": "vae:flux1",
    "flux2-klein": "vae:flux2",
    "qwen-image": "vae:qwen",
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd35": {"shift": 3.0},
    "flux1": DYNAMIC | {"shift": 3.0},
    "flux1-schnell": {"shift": 1.0},
    "flux2-klein": DYNAMIC | {"shift": 3.0},
    "qwen-image": DYNAMIC | {"shift": 1.0, "max_image_seq_len": 8192, "max_shift": 0.9, "shift_terminal": 0.02},
}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def write_transformer(folder: Path, name: str) -> Path:
    """Write a model in the layout of a profile; return the folder."""
    torch.manual_seed(0)
    network = getattr(diffusers, CLASSES[name])(**TRANSFORMERS[name])
    _spread(network)
    network.save_pretrained(folder / "transformer")
    write_vae(folder / "vae", VAES[name])
    FlowMatchEulerDiscreteScheduler(**SCHEDULERS[name]).save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": PIPELINES[name],
        "transformer": ["diffusers", CLASSES[name]],
        "vae": ["diffusers", type_of(folder / "vae")],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    for ending, (text, tokenizer) in zip(("", "_2", "_3"), _texts(folder, name), strict=False):
        text.save_pretrained(folder / f"text_encoder{ending}")
        index[f"text_encoder{ending}"] = ["transformers", type(text).__name__]
        index[f"tokenizer{ending}"] = ["transformers", tokenizer]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def type_of(part: Path) -> str:
    """Return the class in a part's configuration."""
    return str(json.loads((part / "config.json").read_text())["_class_name"])


def _spread(network: Any) -> None:
    """Give modulations and output weights that are not nearly zero, so that every layer counts."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))


def _texts(folder: Path, name: str) -> list[tuple[Any, str]]:
    """Return the text encoders and their tokenizers' classes; write the tokenizers."""
    small = VIT_L | {"hidden_size": 24, "num_hidden_layers": 2}
    large = VIT_G | {"hidden_size": 40, "num_hidden_layers": 2}
    if name == "sd35":
        return [
            _clip(folder, "", CLIPTextModelWithProjection, small | {"projection_dim": 24}),
            _clip(folder, "_2", CLIPTextModelWithProjection, large | {"projection_dim": 40}, pad_token="!"),
            _t5(folder, "_3"),
        ]
    if name.startswith("flux1"):
        return [_clip(folder, "", CLIPTextModel, small), _t5(folder, "_2")]
    return [_qwen3(folder) if name == "flux2-klein" else _qwen_vl(folder)]


def _clip(folder: Path, ending: str, kind: Any, settings: dict[str, Any], **tokenizer: Any) -> tuple[Any, str]:
    shutil.copytree(EMBEDDED / "tokenizer", folder / f"tokenizer{ending}")
    if tokenizer:
        file = folder / f"tokenizer{ending}" / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | tokenizer))
    base = json.loads((EMBEDDED / "text_encoder" / "config.json").read_text())
    config = base | {"intermediate_size": 4 * settings["hidden_size"], "dtype": "float32"} | settings
    return kind(CLIPTextConfig(**config)), "CLIPTokenizer"


def _t5(folder: Path, ending: str) -> tuple[Any, str]:
    """T5 v1.1 with few channels, and a tokenizer of single letters in the format of its own."""
    letters = [(letter, -2.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *letters,
        ("\u2581photo", -1.0),
        ("\u2581person", -1.0),
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    out = folder / f"tokenizer{ending}"
    out.mkdir(parents=True)
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    (out / "tokenizer_config.json").write_text(json.dumps(names | settings))
    config = T5Config(
        vocab_size=len(vocabulary), d_model=64, d_kv=8, d_ff=48, num_layers=2, num_heads=4, is_gated_act=True,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip
    return T5EncoderModel(config), "T5TokenizerFast"


def _qwen3(folder: Path) -> tuple[Any, str]:
    """Qwen3 with few channels and all its 36 layers: the text embedding is three of them."""
    size = _qwen_tokenizer(folder)
    config = Qwen3Config(
        vocab_size=size, hidden_size=24, intermediate_size=32, num_hidden_layers=36, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096, rope_theta=1_000_000.0,
        tie_word_embeddings=True, dtype="float32",
    )  # fmt: skip
    return Qwen3ForCausalLM(config), "Qwen2TokenizerFast"


def _qwen_vl(folder: Path) -> tuple[Any, str]:
    size = _qwen_tokenizer(folder)
    text = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1_000_000.0},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=4, video_token_id=5, vision_start_token_id=6,
        vision_end_token_id=7, dtype="float32",
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config), "Qwen2Tokenizer"


def _qwen_tokenizer(folder: Path) -> int:
    """Write a tokenizer of single bytes in the format of Qwen's; return the number of its words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({letter: i for i, letter in enumerate([*letters, "ph", "ot"])}, [("p", "h"), ("o", "t")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    out = folder / "tokenizer"
    out.mkdir(parents=True)
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": None}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072}
    (out / "tokenizer_config.json").write_text(json.dumps(names | settings))
    (out / "chat_template.jinja").write_text(CHAT)
    return int(tokenizer.get_vocab_size())
