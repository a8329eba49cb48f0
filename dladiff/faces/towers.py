"""Vision towers of CLIP and SigLIP as identity adapters read them: tokens of a layer, or one vector."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dladiff.diffusion.architecture import size_fault
from dladiff.diffusion.bundle import file_sha256
from dladiff.diffusion.model_json import quoted, read_object
from dladiff.errors import ModelError
from dladiff.faces.networks.state import State, built, numbered, read_state
from dladiff.settings.adapters import Reading

SAVED = "name a folder saved by transformers"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of OpenAI's CLIP, which adapters use with every CLIP; RGB in [0, 1]."""
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of SigLIP's normalisation."""
HEAD = 64
"""Width of an attention head of CLIP ViT-L/14."""
PHOTOMAKER = "id_encoder."
"""Start of the names of PhotoMaker's tower and its further layers in the published file."""
CLASSES = {
    "clip": ("CLIPVisionModelWithProjection", ("clip_vision_model", "clip"), "a CLIP vision tower with projection"),
    "siglip": ("SiglipVisionModel", ("siglip_vision_model", "siglip"), "a SigLIP vision tower"),
}
"""Kind to the class of transformers, the accepted `model_type`s, and what messages call it."""


class Tower(nn.Module):
    """A tower for RGB pictures in [0, 1] of its own size."""

    def __init__(self, model: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.model, self.reading = model, reading
        mean, std = (HALF, HALF) if reading.kind == "siglip" else (CLIP_MEAN, CLIP_STD)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        config: Any = model.config
        self.side = int(config.image_size)

    def forward(self, pictures: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """Return what the adapter reads: tokens `b t c`, or one vector as `b 1 c`."""
        out = self.model(
            pixel_values=(pictures - self.get_buffer("mean")) / self.get_buffer("std"),
            output_hidden_states=self.reading.output == "penultimate",
        )
        if self.reading.output == "projected":
            return [out.image_embeds[:, None]]
        if self.reading.output == "pooled":
            return [out.pooler_output[:, None]]
        tokens: Tensor = out.last_hidden_state if self.reading.output == "last" else out.hidden_states[-2]
        return [tokens if self.reading.class_token else tokens[:, 1:]]


def load_model(folder: Path, kind: str) -> nn.Module:
    """Return the tower in a folder saved by transformers (safetensors), in float32.

    Raises ModelError: another model, lacking or damaged weights.
    """
    import transformers

    name, types, what = CLASSES[kind]
    settings = read_object(folder / "config.json", SAVED)
    if settings.get("model_type") not in types:
        raise ModelError(f"{folder} is not {what}: model_type {quoted(settings.get('model_type'))!r} in config.json")
    if fault := size_fault(settings):
        raise ModelError(f"{folder} {fault}: it is not {what}; {SAVED}")
    try:
        model, missed = getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise many classes of their own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder} cannot be loaded as {what.removeprefix('a ')}: {why}") from error
    if missed["missing_keys"] or missed["mismatched_keys"]:
        lost = sorted(missed["missing_keys"])[:1] or [str(missed["mismatched_keys"][0])]
        raise ModelError(f"{folder} lacks weights of {what}: {lost[0]}; fetch it again")
    loaded: nn.Module = model.float()
    return loaded


def load_photomaker(file: Path) -> nn.Module:
    """Return PhotoMaker's own CLIP tower, which is fine-tuned, from its converted file. Raises ModelError."""
    return built(file, "PhotoMaker v2", _photomaker, read_state(file, PHOTOMAKER))


def _photomaker(state: State) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    width, _, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
    layers = "vision_model.encoder.layers"
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=state[f"{layers}.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=numbered(state, layers),
        num_attention_heads=width // HEAD,
        patch_size=patch,
        image_size=patch * round((state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5),
        projection_dim=state["visual_projection.weight"].shape[0],
    )
    model: nn.Module = CLIPVisionModelWithProjection(config)
    return model


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 of the configurations and all weight shards of a folder saved by transformers."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if (folder / "preprocessor_config.json").is_file():
        files.append(folder / "preprocessor_config.json")
    text = "".join(f"{path.name}\0{file_sha256(path)}\0" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()
