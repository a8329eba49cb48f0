"""Weights of encoders: found by name, mirrored, fetched and checked like models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dladiff.diffusion.bundle import CHECKSUMS
from dladiff.errors import ConfigError, ModelError
from dladiff.faces.weights import WEIGHTS, find, missing_weights
from dladiff.settings.schema import method_config
from pipeline.models.encoders import encoder_file, listed_encoders
from pipeline.models.fetch import check, fetch, mirror, on_this_machine
from pipeline.models.fingerprint import by_content, faces, missing
from pipeline.storage.open import open_storage

NAME = "encoder:arcface-ir-se50"
FILE = WEIGHTS["arcface-ir-se50"].file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of encoders; nothing is in it, and nothing is fetched."""
    for name in ("DLADIFF_FACES", "DLADIFF_MODELS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    (tmp_path / "dladiff_faces").mkdir()
    return tmp_path / "dladiff_faces"


def put(folder: Path, value: float = 1.0) -> Path:
    save_file({"weight": torch.full((4,), value)}, folder / FILE)
    return folder / FILE


def test_weights_travel_through_a_mirror(home: Path, tmp_path: Path) -> None:
    put(home)
    uri = str(tmp_path / "mirror")
    pins = mirror(NAME, uri)
    assert list(pins.sha256) == [FILE] and pins.licence.startswith("MIT")
    assert (tmp_path / "mirror" / CHECKSUMS).is_file() and mirror(NAME, uri) == pins
    by_name = faces("adapter:infiniteyou.id")
    (home / FILE).unlink()
    assert find("arcface-ir-se50") is None and check(NAME).faults
    folder = fetch(NAME, uri)
    assert find("arcface-ir-se50") == folder / FILE and not check(NAME).faults and fetch(NAME, uri) == folder
    assert faces("adapter:infiniteyou.id") != "adapter:infiniteyou.id" != by_name
    content = faces("adapter:infiniteyou.id")
    (folder / FILE).write_bytes(b"damaged")
    assert "bytes" in check(NAME).faults[0]
    with pytest.raises(ModelError, match="is damaged"):
        fetch(NAME, uri)
    assert content == faces("adapter:infiniteyou.id")  # by the checksums; loading and `models check` compare the bytes


def test_what_a_bucket_holds_is_no_fault_and_a_worker_copies_it(home: Path, tmp_path: Path) -> None:
    config = method_config("tiny", None, {"encoders": ["adapter:infiniteyou"]})
    source = str(tmp_path / "encoders")
    assert "recognition_arcface" in missing(config)[0] and len(missing(config, source)) == 1
    mirror(f"encoder:{put(tmp_path)}", f"{source}/arcface-ir-se50")
    assert missing(config, source) == []
    stored = by_content(config, source)["encoders"]
    settings = {"profile": "tiny", "overrides": {"encoders": ["adapter:infiniteyou"]}, "encoders_from": source}
    assert on_this_machine(settings, open_storage) == settings
    assert missing(config) == [] and by_content(config)["encoders"] == stored  # the same files are the same work


def test_a_damaged_mirror_is_refused(home: Path, tmp_path: Path) -> None:
    uri = tmp_path / "mirror"
    mirror(f"encoder:{put(tmp_path)}", str(uri))
    (uri / FILE).write_bytes((uri / FILE).read_bytes()[:-1])
    with pytest.raises(ModelError, match="mirror it again"):
        fetch(NAME, str(uri))
    assert find("arcface-ir-se50") is None
    (uri / CHECKSUMS).unlink()
    put(uri)
    assert fetch(NAME, str(uri)).is_dir()  # a plain folder: its files are hashed
    with pytest.raises(ModelError, match="does not hold EVA02"):
        fetch("encoder:eva02-clip-l-336", str(uri))


@pytest.mark.parametrize("path", ["../x.onnx", "/x.onnx", ".x.onnx", "a/b/c.onnx", "x.bin", "x.pth", "a\\b.onnx", ""])
def test_checksums_may_not_name_other_files(path: str, home: Path, tmp_path: Path) -> None:
    assert not encoder_file(path)
    mirror(f"encoder:{put(tmp_path)}", str(tmp_path / "mirror"))
    file = tmp_path / "mirror" / CHECKSUMS
    stored = json.loads(file.read_text())
    stored["files"][path] = next(iter(stored["files"].values()))
    file.write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="no model needs"):
        fetch(NAME, str(tmp_path / "mirror"))


def test_names_and_sources_that_are_wrong(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean arcface-ir-se50"):
        fetch("encoder:arcface-ir-se5", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs --from.*licence MIT"):
        fetch(NAME)
    (fault,) = check("encoder:nothing").faults
    assert "no known weights" in fault and "clip-vit-h" in fault
    rows = {row["profile"]: row for row in listed_encoders()}
    assert rows[NAME]["folder"] is None and rows[NAME]["licence"] and rows[NAME]["place"]
    assert missing_weights(["embedded:residual", "buffalo_l"]) is None
