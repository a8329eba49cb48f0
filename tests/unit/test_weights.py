"""The configuration digest sees weights by content."""

import shutil
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.weights import fingerprint


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
