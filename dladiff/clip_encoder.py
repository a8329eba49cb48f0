"""A CLIP vision tower as an identity encoder: what IP-Adapter, PhotoMaker and their kind read beside a face embedding.

IP-Adapter FaceID-Plus aligns the face as InsightFace does, at 224 px, and shows that crop to CLIP.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dladiff.bundle import file_sha256
from dladiff.errors import ModelError
from dladiff.identity import IdentityEncoder
from dladiff.packs import CLIP, located

LICENCE = "unknown: see the model card"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's, and transformers' where the folder holds no preprocessor_config.json."""


class ClipTower(nn.Module):
    """Projected image embeddings of RGB crops on the 0..255 scale, scaled as the folder's own image processor does."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 255)
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 255)

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Return `image_embeds`, not yet of unit length."""
        found: Tensor = self.model(pixel_values=(crops - self.get_buffer("mean")) / self.get_buffer("std")).image_embeds
        return found


def load_clip_encoder(name: str) -> IdentityEncoder:
    """Load `clip:FOLDER`, a folder saved by transformers' CLIPVisionModelWithProjection, safetensors only.

    Crops are aligned at the tower's own input size. Raises ModelError: no such folder, another model, damaged weights.
    """
    from transformers import CLIPVisionModelWithProjection

    folder = located(name)
    settings = _json(folder / "config.json")
    if settings.get("model_type") not in ("clip_vision_model", "clip"):
        raise ModelError(f"{folder} is no CLIP vision tower: model_type {settings.get('model_type')!r} in config.json")
    try:
        model, missed = CLIPVisionModelWithProjection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise a class of their own for every kind of fault
        raise ModelError(f"{folder} cannot be loaded as a CLIP vision tower: {str(error).splitlines()[0]}") from error
    if missed["missing_keys"] or missed["mismatched_keys"]:
        lost = sorted(missed["missing_keys"])[:1] or [str(missed["mismatched_keys"][0])]
        raise ModelError(f"{folder} lacks weights of a CLIP vision tower with projection: {lost[0]}; fetch it again")
    crop = int(model.config.image_size)
    given = folder / "preprocessor_config.json"
    processor = _json(given) if given.is_file() else {}
    tower = ClipTower(model.float(), tuple(processor.get("image_mean", MEAN)), tuple(processor.get("image_std", STD)))
    short = folder.resolve().name
    return IdentityEncoder(tower, f"{CLIP}{short}", _digest(folder), LICENCE, mean=0.0, std=1.0, crop=crop)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is missing or damaged; name a folder saved by transformers") from error
    return values if isinstance(values, dict) else {}


def _digest(folder: Path) -> str:
    """One digest of the settings and the weights, shard by shard."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if (folder / "preprocessor_config.json").is_file():
        files.append(folder / "preprocessor_config.json")
    text = "".join(f"{path.name}\0{file_sha256(path)}\0" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()
