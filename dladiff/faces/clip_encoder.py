"""A CLIP vision tower as an identity encoder; IP-Adapter and PhotoMaker use one in addition to a face embedding.

IP-Adapter FaceID-Plus gives CLIP a 224 px crop that is aligned like InsightFace's.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dladiff.diffusion.model_json import read_object
from dladiff.errors import ModelError
from dladiff.faces.encoder import IdentityEncoder
from dladiff.faces.packs import CLIP, located
from dladiff.faces.towers import CLIP_MEAN, CLIP_STD, SAVED, folder_digest, load_model

LICENCE = "unknown: see the model card"


class ClipTower(nn.Module):
    """Projected image embeddings of RGB crops in 0..255, normalised like the folder's image processor.

    Without a preprocessor_config.json, with the normalisation of OpenAI's CLIP.
    """

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
    folder = located(name)
    model: Any = load_model(folder, "clip")
    given = folder / "preprocessor_config.json"
    processor = read_object(given, SAVED) if given.is_file() else {}
    try:
        crop = int(model.config.image_size)
        mean, std = _three(processor.get("image_mean", CLIP_MEAN)), _three(processor.get("image_std", CLIP_STD))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{given} has no image_mean and image_std of three numbers; {SAVED}") from error
    tower, short = ClipTower(model, mean, std), folder.resolve().name
    return IdentityEncoder(tower, f"{CLIP}{short}", folder_digest(folder), LICENCE, mean=0.0, std=1.0, crop=crop)


def _three(values: Any) -> tuple[float, ...]:
    """Return `values` as three floats. Raises TypeError, ValueError."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue
