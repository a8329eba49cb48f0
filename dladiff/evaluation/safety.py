"""NSFWR: the safety checker of a base model, if the model's folder contains one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.errors import ModelError


class BaseSafetyChecker:
    """Stable Diffusion's safety checker, loaded from a diffusers folder."""

    # The checker blacks out flagged pictures, so it gets dummy pictures beside the real CLIP input

    def __init__(self, folder: Path) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        settings = {"local_files_only": True}
        try:
            self._checker = StableDiffusionSafetyChecker.from_pretrained(
                folder / "safety_checker", use_safetensors=True, **settings
            ).eval()
            self._processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor", **settings)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"the safety checker in {folder} cannot be loaded: {str(error).splitlines()[0]}"
            ) from error

    def __call__(self, pictures: Sequence[Pixels]) -> list[bool]:
        """Return for each picture whether it is flagged as not safe for work."""
        flags: list[bool] = []
        for picture in pictures:
            clip = self._processor(images=[Image.fromarray(picture)], return_tensors="pt").pixel_values
            with torch.no_grad():
                _, flagged = self._checker(images=[np.zeros((1, 1, 3))], clip_input=clip)
            flags += [bool(flag) for flag in flagged]
        return flags


def safety_checker(folder: str | Path) -> BaseSafetyChecker | None:
    """Load the checker of a base model, or return None if the folder has none. Raises ModelError: damaged."""
    root = Path(folder)
    return BaseSafetyChecker(root) if (root / "safety_checker").is_dir() else None
