"""Transformers through the protection service and the plan, on models with few channels on the disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.data import astronaut

from dladiff.core.exchange import PhotoIn
from dladiff.errors import ConfigError
from dladiff.service import Protector
from dladiff.settings.schema import method_config
from pipeline.models.fingerprint import by_content, missing
from tests.support.transformer_layouts import write_transformer

pytestmark = pytest.mark.networks
PROFILES = ("sd35", "flux1", "flux2-klein", "qwen-image")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_transformer(tmp_path_factory.mktemp("profiles") / name, name) for name in PROFILES}


def settings(profile: str, folder: Path, **changes: Any) -> dict[str, Any]:
    few = {
        "finetuning": {"iter_ft": 1, "iter_opt": 2, "iter_1": 1, "iter_2": 1, "iter_3": 1, "attention_resolution": 4},
        "zero_shot": {"max_steps": 2, "check_every": 1},
        "joint": {"steps": 2},
        "encoders": ["embedded:residual"],
        "model": str(folder),
        "resolution": 64,
    }
    finetuning = few["finetuning"] | changes.pop("finetuning", {})
    return {"profile": profile, "overrides": few | changes | {"finetuning": finetuning}, "gpu": False}


def photo() -> PhotoIn:
    return PhotoIn(key="a", pixels=np.ascontiguousarray(astronaut()[0:256, 96:352]))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("layer_1", ["adft", "latent"])
def test_both_layers_protect_a_photo(folders: dict[str, Path], profile: str, layer_1: str) -> None:
    """Algorithm 1 with sign steps, and the latent push under a visibility budget, which needs the VAE alone."""
    visibility = 0.0 if layer_1 == "adft" else 75.0
    protector = Protector(settings(profile, folders[profile], layer_1=layer_1, visibility=visibility), 0, 1)
    out = protector.protect_identity("a", [photo()], [])
    assert not np.array_equal(out.photos[0].pixels, photo().pixels) and out.photos[0].status == "protected"
    described = {row["role"]: row for row in protector._described()}
    if layer_1 == "adft":
        assert out.steps["static_surrogate"] == {"training": 1} and out.photos[0].linf <= 7 / 255 + 11 / 255 + 1e-6
        assert described["surrogate"]["name"] == profile
    else:
        assert "surrogate" not in described and "joint_layers" in out.steps


REFUSED = [
    ({"protection": "aspl"}, "protection: compared methods attack the U-Nets"),
    ({"finetuning": {"surrogate": "full"}}, "finetuning.surrogate: a transformer is trained as low-rank matrices only"),
    ({"gpu_memory": "24GB"}, "gpu_memory: its settings are for Stable Diffusion 1 and 2"),
    ({"finetuning": {"attention_resolution": 2}}, "finetuning.attention_resolution: 2 is not a side"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_settings_that_do_not_suit_a_transformer_are_refused(
    folders: dict[str, Path], changes: dict[str, Any], message: str
) -> None:
    own = settings("sd35", folders["sd35"], visibility=0.0, **changes)
    with pytest.raises(ConfigError, match=message):
        Protector(own, 0, 1)
    if "attention_resolution" not in message:  # the plan says it too, without torch
        lines = missing(method_config("sd35", None, own["overrides"]))
        assert len(lines) == 1 and lines[0].startswith(message)


def test_the_plan_knows_the_model(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = settings("flux1", folders["flux1"], visibility=0.0)["overrides"]
    config = method_config("flux1", None, own)
    assert missing(config) == [] and by_content(config)["model"].startswith("sha256:")
    file = folders["flux1"] / "text_encoder_2" / "model.safetensors"
    data = file.read_bytes()
    try:
        file.write_bytes(data[:-10])
        assert "text_encoder_2/model.safetensors has" in missing(config)[0]
    finally:
        file.write_bytes(data)
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (line, *_) = missing(method_config("flux1", None, {"visibility": 0.0, "encoders": ["embedded:residual"]}))
    assert "dladiff models fetch flux1 gets it" in line
