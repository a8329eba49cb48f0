"""A CLIP vision tower as an identity encoder; IP-Adapter and PhotoMaker use one in addition to a face embedding.

IP-Adapter FaceID-Plus gives CLIP a 224 px crop that is aligned like InsightFace's.
"""

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
from dladiff.faces.encoder import IdentityEncoder
from dladiff.faces.packs import CLIP, located

LICENCE = "unknown: see the model card"
SAVED = "name a folder saved by transformers"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of OpenAI's CLIP; transformers' default without a preprocessor_config.json."""


class ClipTower(nn.Module):
    """Projected image embeddings of RGB crops in 0..255, normalised like the folder's image processor."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 255)
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 255)

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Return `image_embeds`, not normalised to unit length."""
        embeddings: Tensor = self.model(
            pixel_values=(crops - self.get_buffer("mean")) / self.get_buffer("std")
        ).image_embeds
        return embeddings


def load_clip_encoder(name: str) -> IdentityEncoder:
    """Return the encoder of `clip:FOLDER`, a folder saved by transformers' CLIPVisionModelWithProjection (safetensors).

    Crops are aligned at the tower's input size. Raises ModelError: no such folder, another model, damaged weights.
    """
    from transformers import CLIPVisionModelWithProjection

    folder = located(name)
    settings = read_object(folder / "config.json", SAVED)
    if settings.get("model_type") not in ("clip_vision_model", "clip"):
        raise ModelError(
            f"{folder} is no CLIP vision tower: model_type {quoted(settings.get('model_type'))!r} in config.json"
        )
    if fault := size_fault(settings):
        raise ModelError(f"{folder} {fault}: it is no CLIP vision tower; {SAVED}")
    try:
        model, missed = CLIPVisionModelWithProjection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise many classes of their own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder} cannot be loaded as a CLIP vision tower: {why}") from error
    if missed["missing_keys"] or missed["mismatched_keys"]:
        lost = sorted(missed["missing_keys"])[:1] or [str(missed["mismatched_keys"][0])]
        raise ModelError(f"{folder} lacks weights of a CLIP vision tower with projection: {lost[0]}; fetch it again")
    given = folder / "preprocessor_config.json"
    processor = read_object(given, SAVED) if given.is_file() else {}
    try:
        crop = int(model.config.image_size)
        mean, std = _three(processor.get("image_mean", MEAN)), _three(processor.get("image_std", STD))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{given} has no image_mean and image_std of three numbers; {SAVED}") from error
    tower, short = ClipTower(model.float(), mean, std), folder.resolve().name
    return IdentityEncoder(tower, f"{CLIP}{short}", _digest(folder), LICENCE, mean=0.0, std=1.0, crop=crop)


def _three(values: Any) -> tuple[float, ...]:
    """Return `values` as three floats. Raises TypeError, ValueError."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _digest(folder: Path) -> str:
    """Return the SHA-256 of the configurations and all weight shards."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if (folder / "preprocessor_config.json").is_file():
        files.append(folder / "preprocessor_config.json")
    text = "".join(f"{path.name}\0{file_sha256(path)}\0" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()
