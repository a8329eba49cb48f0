"""Lookup of InsightFace packs by name; protection and digest use the same files."""

import shutil
from pathlib import Path

import pytest

from dladiff.errors import ModelError
from dladiff.faces import packs
from dladiff.service import named_detector, named_encoder
from pipeline.config import RunConfig
from pipeline.models.fingerprint import faces, fingerprint


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(packs.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "home" / ".insightface" / "models"
    models.mkdir(parents=True)
    return models


def pack(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "rec.onnx").write_bytes(content)
    return folder


def test_the_folder_of_the_variable_comes_first(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pack(home / "buffalo_l"), pack(tmp_path / "packs" / "buffalo_l", b"other")
    assert packs.find("buffalo_l") == theirs
    monkeypatch.setenv(packs.VARIABLE, str(tmp_path / "packs"))
    assert packs.find("buffalo_l") == ours
    here = pack(tmp_path / "buffalo_l")
    assert packs.located("buffalo_l").resolve() == here


def test_the_nested_folder_of_a_bad_zip(home: Path) -> None:
    inner = pack(home / "antelopev2" / "antelopev2")
    assert packs.find("antelopev2") == packs.find(str(inner.parent)) == packs.find(str(inner)) == inner
    (home / "empty").mkdir()
    assert packs.find("empty") is None


@pytest.mark.parametrize("name", ["a/buffalo_l", "../buffalo_l", "..", ".", "", "buffalo_l.onnx", "embedded:residual"])
def test_only_pack_names_are_looked_up(name: str, home: Path) -> None:
    pack(home / "buffalo_l")
    found = packs.find(name)
    assert found is None or home not in found.resolve().parents


def test_missing_says_where_and_how(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(packs.VARIABLE, str(tmp_path / "packs"))
    for load in (named_encoder, lambda name: named_detector(name, 20, 0.5)):
        with pytest.raises(ModelError) as caught:
            load("buffalo_l")
        text = str(caught.value)
        for part in (
            str(home / "buffalo_l"),
            str(tmp_path / "packs"),
            "buffalo_l.zip",
            "non-commercial",
            "no InsightF",
        ):
            assert part in text
        assert "\n" not in text
    for name in ("some/where", "clip:absent", "absent.onnx"):
        with pytest.raises(ModelError, match="name a"):
            named_encoder(name)


def test_a_real_pack_by_name(assets: Path, home: Path) -> None:
    shutil.copytree(assets / "insightface_pack" / "mini_y1", home / "mini_y1")
    encoder = named_encoder("mini_y1")
    assert encoder.name == "mini_y1" and encoder.crop == 112
    assert named_detector("mini_y1", 20, 0.5).sha256 == named_detector(str(home / "mini_y1"), 20, 0.5).sha256


def test_the_digest_covers_the_pack_of_that_name(home: Path, tmp_path: Path) -> None:
    def digest(name: str) -> str:
        return RunConfig(input="a", output="b", faces=(name,)).config_digest()

    unknown = digest("buffalo_l")
    folder = pack(home / "buffalo_l")
    assert digest("buffalo_l") == digest(str(folder)) != unknown
    before = digest("buffalo_l")
    (folder / "rec.onnx").write_bytes(b"weightz")
    assert digest("buffalo_l") != before
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "model.safetensors").write_bytes(b"x")
    assert faces(f"clip:{tower}") == fingerprint(str(tower)) != f"clip:{tower}"
    assert faces("embedded:residual") == fingerprint("embedded:residual") and faces("centerface") == "centerface"
