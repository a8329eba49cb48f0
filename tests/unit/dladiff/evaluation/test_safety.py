"""NSFWR: a checker of the diffusers layout whose thresholds decide the answer."""

from pathlib import Path

import numpy as np
import pytest

from dladiff.errors import ModelError
from dladiff.evaluation.safety import safety_checker


def bundle(folder: Path, threshold: float) -> Path:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=small | {"image_size": 32, "patch_size": 16}, text_config=small, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data[:] = threshold  # a cosine above it is unsafe
    checker.save_pretrained(folder / "safety_checker", safe_serialization=True)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder / "feature_extractor")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("threshold", "flagged"), [(-2.0, True), (2.0, False)])
def test_thresholds_beyond_every_cosine_decide(tmp_path: Path, threshold: float, flagged: bool) -> None:
    checker = safety_checker(bundle(tmp_path, threshold))
    assert checker is not None
    assert checker([np.zeros((40, 40, 3), np.uint8), np.full((64, 32, 3), 200, np.uint8)]) == [flagged, flagged]


def test_a_model_without_one(tmp_path: Path) -> None:
    assert safety_checker("embedded") is None
    (tmp_path / "safety_checker").mkdir()
    with pytest.raises(ModelError, match="cannot be loaded"):
        safety_checker(tmp_path)
