"""Files in the published layouts of the encoders that identity adapters use, with few channels and random weights.

The names of the tensors are written out here, as in the published files, not taken from the networks under test.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dladiff.faces.weights import WEIGHTS

HEAD = 64


def save_clip(folder: Path, side: int = 224, seed: int = 1) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=side,
        patch_size=32, projection_dim=24,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(folder)
    return model


def save_siglip(folder: Path) -> SiglipVisionModel:
    torch.manual_seed(2)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=384, patch_size=64
    )
    model = SiglipVisionModel(config).eval()
    model.save_pretrained(folder)
    return model


def photomaker_state() -> dict[str, Tensor]:
    """The tower's tensors, and two of those that the adapter has beside it."""
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=HEAD, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1, image_size=224,
        patch_size=32, projection_dim=24,
    )  # fmt: skip
    own = {f"id_encoder.{name}": tensor for name, tensor in CLIPVisionModelWithProjection(config).state_dict().items()}
    return own | {"id_encoder.visual_projection_2.weight": torch.randn(8, HEAD), "lora_weights.x": torch.randn(2)}


def eva_state(blocks: int = 21, inner: int = 24, cells: int = 24) -> dict[str, Tensor]:
    """EVA02-CLIP's vision tower at 336 px, with one tensor of the text tower."""
    torch.manual_seed(4)
    width, state = HEAD, {}

    def put(name: str, *shape: int, scale: float = 0.1) -> None:
        state[f"visual.{name}"] = scale * torch.randn(*shape)

    put("cls_token", 1, 1, width)
    put("pos_embed", 1, cells**2 + 1, width)
    put("patch_embed.proj.weight", width, 3, 14, 14, scale=0.05)
    put("patch_embed.proj.bias", width)
    for i in range(blocks):
        for norm, size in (("norm1", width), ("norm2", width), ("attn.inner_attn_ln", width), ("mlp.ffn_ln", inner)):
            state[f"visual.blocks.{i}.{norm}.weight"] = 1 + 0.1 * torch.randn(size)
            put(f"blocks.{i}.{norm}.bias", size)
        for name in ("q_proj", "k_proj", "v_proj", "proj"):
            put(f"blocks.{i}.attn.{name}.weight", width, width)
        for name in ("q_bias", "v_bias", "proj.bias"):
            put(f"blocks.{i}.attn.{name}", width)
        for name, out, into in (("w1", inner, width), ("w2", inner, width), ("w3", width, inner)):
            put(f"blocks.{i}.mlp.{name}.weight", out, into)
            put(f"blocks.{i}.mlp.{name}.bias", out)
        put(f"blocks.{i}.attn.rope.freqs_cos", cells**2, HEAD)
    state["visual.norm.weight"] = 1 + 0.1 * torch.randn(width)
    put("norm.bias", width)
    put("head.weight", 16, width)
    put("head.bias", 16)
    return state | {"text.token_embedding.weight": torch.randn(4, 4), "logit_scale": torch.zeros(())}


def _norm(state: dict[str, Tensor], name: str, size: int, affine: bool = True) -> None:
    state[f"{name}.running_mean"] = 0.1 * torch.randn(size)
    state[f"{name}.running_var"] = 1 + 0.1 * torch.rand(size)
    state[f"{name}.num_batches_tracked"] = torch.tensor(1)
    if affine:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.1 * torch.randn(size), 0.1 * torch.randn(size)


def _conv(state: dict[str, Tensor], name: str, out: int, into: int, size: int) -> None:
    state[f"{name}.weight"] = torch.randn(out, into, size, size) / (into * size * size) ** 0.5


def recogniser_state(squeezed: bool, width: int = 4, units: tuple[int, ...] = (2, 2, 3, 2)) -> dict[str, Tensor]:
    """IR-SE50 of facexlib (`squeezed`) or IR-101 of TFace, with fewer blocks and channels."""
    torch.manual_seed(5)
    state: dict[str, Tensor] = {}
    _conv(state, "input_layer.0", width, 3, 3)
    _norm(state, "input_layer.1", width)
    state["input_layer.2.weight"] = 0.25 * torch.ones(width)
    number, into = 0, width
    for stage, count in enumerate(units):
        out = width * 2**stage
        for _ in range(count):
            name = f"body.{number}.res_layer"
            _norm(state, f"{name}.0", into)
            _conv(state, f"{name}.1", out, into, 3)
            at = 2
            if not squeezed:
                _norm(state, f"{name}.2", out)
                at = 3
            state[f"{name}.{at}.weight"] = 0.25 * torch.ones(out)
            _conv(state, f"{name}.{at + 1}", out, out, 3)
            _norm(state, f"{name}.{at + 2}", out)
            if squeezed:
                _conv(state, f"{name}.5.fc1", max(1, out // 16), out, 1)
                _conv(state, f"{name}.5.fc2", out, max(1, out // 16), 1)
            if into != out:
                _conv(state, f"body.{number}.shortcut_layer.0", out, into, 1)
                _norm(state, f"body.{number}.shortcut_layer.1", out)
            number, into = number + 1, out
    _norm(state, "output_layer.0", into)
    state["output_layer.3.weight"], state["output_layer.3.bias"] = torch.randn(16, into * 49) / 7, torch.randn(16)
    _norm(state, "output_layer.4", 16, affine=squeezed)
    return state


def parsing_state(width: int = 4, classes: int = 19) -> dict[str, Tensor]:
    """facexlib's BiSeNet with fewer channels."""
    torch.manual_seed(6)
    state: dict[str, Tensor] = {}

    def unit(name: str, out: int, into: int, size: int) -> None:
        _conv(state, f"{name}.conv", out, into, size)
        _norm(state, f"{name}.bn", out)

    resnet, w = "cp.resnet", width
    _conv(state, f"{resnet}.conv1", w, 3, 7)
    _norm(state, f"{resnet}.bn1", w)
    for layer, into, out in ((1, w, w), (2, w, 2 * w), (3, 2 * w, 4 * w), (4, 4 * w, 8 * w)):
        for i in range(2):
            name, first = f"{resnet}.layer{layer}.{i}", into if i == 0 else out
            _conv(state, f"{name}.conv1", out, first, 3)
            _conv(state, f"{name}.conv2", out, out, 3)
            _norm(state, f"{name}.bn1", out)
            _norm(state, f"{name}.bn2", out)
            if i == 0 and layer > 1:
                _conv(state, f"{name}.downsample.0", out, first, 1)
                _norm(state, f"{name}.downsample.1", out)
    for name, into in (("arm16", 4 * w), ("arm32", 8 * w)):
        unit(f"cp.{name}.conv", 2 * w, into, 3)
        _conv(state, f"cp.{name}.conv_atten", 2 * w, 2 * w, 1)
        _norm(state, f"cp.{name}.bn_atten", 2 * w)
    unit("cp.conv_head32", 2 * w, 2 * w, 3)
    unit("cp.conv_head16", 2 * w, 2 * w, 3)
    unit("cp.conv_avg", 2 * w, 8 * w, 1)
    unit("ffm.convblk", 4 * w, 4 * w, 1)
    _conv(state, "ffm.conv1", w, 4 * w, 1)
    _conv(state, "ffm.conv2", 4 * w, w, 1)
    for head, into, middle in (("conv_out", 4 * w, 4 * w), ("conv_out16", 2 * w, w), ("conv_out32", 2 * w, w)):
        unit(f"{head}.conv", middle, into, 3)
        _conv(state, f"{head}.conv_out", classes, middle, 1)
    return state


def save_towers(folder: Path) -> None:
    """Write every known encoder but InsightFace's packs."""
    for seed, name in enumerate(("clip-vit-h", "clip-vit-l")):
        save_clip(folder / name, seed=20 + seed)
    save_siglip(folder / "siglip-so400m-384")
    states = {
        "photomaker-v2": photomaker_state(),
        "eva02-clip-l-336": eva_state(),
        "parsing-bisenet": parsing_state(),
        "arcface-ir-se50": recogniser_state(squeezed=True),
        "curricularface-r101": recogniser_state(squeezed=False),
    }
    for name, state in states.items():
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / WEIGHTS[name].file)


def save_all(folder: Path, packs: Path) -> None:
    """Write every known encoder; the small packs in `packs` stand for InsightFace's."""
    for name, small in (("buffalo_l", "mini_y1"), ("antelopev2", "mini_relu6")):
        shutil.copytree(packs / small, folder / name)
    save_towers(folder)
