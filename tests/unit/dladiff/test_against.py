"""A photo protected against adapters, end to end: encoders in the published layouts, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from dladiff.core.exchange import PhotoIn
from dladiff.errors import ModelError
from dladiff.evaluation.evaluator import cosines, load_evaluator
from dladiff.service import Protector
from tests.support.adapter_weights import save_all

pytestmark = pytest.mark.networks

ALL = ("faceid-plus", "instantid", "photomaker", "infiniteyou", "pulid", "storymaker", "uniportrait", "sd35-ip-adapter")


def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:224, 112:336])


def settings(*adapters: str, **more: Any) -> dict[str, Any]:
    overrides = {"encoders": [f"adapter:{name}" for name in adapters], "held_out": [], "layers": "zero_shot"} | more
    return {"profile": "tiny", "overrides": overrides}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_all(folder, assets / "insightface_pack")
    return folder


@pytest.fixture
def named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLADIFF_FACES", str(weights))


def test_every_reading_of_every_adapter_is_lowered(named: None) -> None:
    """Both layers' loop with a whole photo, two alignments and several sizes beside each other."""
    joint = {"steps": 3, "encoders_per_step": 0, "draws": 1}
    out = Protector(settings(*ALL, joint=joint, visibility=40.0), seed=0, threads=1).protect_identity(
        "a", [PhotoIn(key="a", pixels=photo())], []
    )
    (done,) = out.photos
    names = [row["encoder"] for row in done.similarity]
    assert {"pulid.eva", "photomaker.photo", "infiniteyou.id", "uniportrait.id", "storymaker.person"} <= set(names)
    assert "faceid-plus.id" in names and "storymaker.id" not in names  # one reading, optimised once
    assert all(row["after"] < row["before"] for row in done.similarity)
    reads = {row["name"]: row for row in out.models if row["role"] == "encoder"}
    assert all(len(row["sha256"]) == 64 and row["licence"] for row in reads.values())

    evaluator = load_evaluator(["adapter:pulid", "adapter:photomaker"])
    clean, after = evaluator.embed(photo()), evaluator.embed(done.pixels)
    assert clean is not None
    found = cosines(after, clean.embeddings)
    assert set(found) == {"pulid.id", "pulid.eva", "photomaker.id", "photomaker.photo"}
    assert all(value is not None and value < 1 for value in found.values())


def test_sign_steps_and_jpeg_read_the_whole_photo_too(named: None) -> None:
    more = {"visibility": 0, "zero_shot": {"max_steps": 3}, "output": {"format": "jpeg"}}
    (done,) = (
        Protector(settings("photomaker", **more), seed=0, threads=1)
        .protect_identity("a", [PhotoIn(key="a", pixels=photo())], [])
        .photos
    )
    rows = {row["encoder"]: row for row in done.similarity}
    assert rows["photomaker.photo"]["after"] < rows["photomaker.photo"]["before"]


def test_missing_weights_stop_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DLADIFF_FACES", "DLADIFF_MODELS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with pytest.raises(ModelError, match=r"adapters pulid, infiniteyou need .*antelopev2/.*EVA02.*parsing.*ir_se50"):
        Protector(settings("pulid", "infiniteyou"), seed=0, threads=1)
