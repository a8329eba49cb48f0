"""The configuration digest sees weights by content."""

import shutil
from pathlib import Path

import pytest

from dladiff.settings.schema import MethodConfig, method_config
from pipeline.config import RunConfig
from pipeline.models.fingerprint import EMBEDDED, fingerprint, missing
from tests.support.model_layouts import write_layout


def digest(encoder: Path) -> str:
    return RunConfig(input="a", output="b", method={"encoders": [str(encoder)]}).config_digest()


def test_exchanged_weights_are_new_work_and_moved_ones_are_not(tmp_path: Path) -> None:
    first = tmp_path / "one" / "pack"
    first.mkdir(parents=True)
    (first / "rec.onnx").write_bytes(b"weights")
    (first / "README.md").write_text("about")
    before = digest(first)
    moved = tmp_path / "other" / "pack"
    shutil.copytree(first, moved)
    assert digest(moved) == before
    (moved / "README.md").write_text("more")
    assert digest(moved) == before
    (moved / "rec.onnx").write_bytes(b"weightz")
    assert digest(moved) != before


def test_what_is_not_here_keeps_its_name(tmp_path: Path) -> None:
    assert fingerprint("embedded:no-such-encoder") == "embedded:no-such-encoder"
    assert fingerprint(str(tmp_path / "absent")) == str(tmp_path / "absent")
    assert fingerprint("") == ""
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert fingerprint(str(tmp_path / "a.onnx")).startswith("sha256:")


def test_weights_of_the_package_count() -> None:
    names = ("embedded", "embedded:residual", "embedded:mobile")
    assert len({fingerprint(name) for name in names}) == 3
    assert all(fingerprint(name).startswith("sha256:") for name in names)


def test_nothing_is_missing_of_what_ships_and_of_what_lies_here(tmp_path: Path) -> None:
    assert missing(MethodConfig()) == []
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "rec.onnx").write_bytes(b"weights")
    shutil.copytree(EMBEDDED / "bundle", tmp_path / "model")
    model, pack, file = (str(tmp_path / name) for name in ("model", "pack", "pack/rec.onnx"))
    given = MethodConfig(model=model, encoders=(pack, file), held_out=(f"clip:{pack}",), detector=pack)
    assert missing(given) == []


def test_everything_that_is_missing_is_reported_at_once_and_the_same_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "DLADIFF_MODELS", "DLADIFF_FACES"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / "photos").mkdir()
    overrides = {
        "visibility": 0,
        "model": "/nosuch",
        "encoders": ["/nosuch.onnx", "embedded:foo", "clip:/tower", "buffalo_l", str(tmp_path / "photos")],
        "detector": "/nosuch.onnx",
        "finetuning": {"class_images": "/people"},
    }
    begins = [
        "model: /nosuch: no folder of the diffusers layout here",
        "encoders, detector: nothing at /nosuch.onnx: name an ONNX file",
        "encoders: no embedded encoder named 'foo'; this package ships: mobile, mobilefacenet, residual",
        "encoders: no CLIP vision tower at /tower",
        f"encoders: no InsightFace pack buffalo_l in {tmp_path}/DLADIFF_FACES/buffalo_l, ",
        f"encoders: no ONNX file in {tmp_path}/photos",
        "finetuning.class_images: no folder /people",
    ]
    found = missing(method_config("tiny", None, overrides))
    assert [fault[: len(begin)] for fault, begin in zip(found, begins, strict=True)] == begins
    (known,) = missing(method_config("sd21", None, {"visibility": 0}))
    assert "dladiff models fetch sd21 gets it" in known
    (less,) = missing(method_config("sd21", None, {}))
    assert "dladiff models fetch vae:sd gets its VAE, which is all that is needed" in less


def test_the_profile_tiny_is_refused_for_another_architecture(tmp_path: Path) -> None:
    write_layout(tmp_path / "sd15", "sd15")
    (fault,) = missing(method_config("tiny", None, {"model": str(tmp_path / "sd15")}))
    assert fault.startswith("model: profile: resolution, schedule and encoders of tiny suit only the embedded model")
    assert missing(method_config("sd15", None, {"model": str(tmp_path / "sd15"), "layers": "finetuning"})) == []
