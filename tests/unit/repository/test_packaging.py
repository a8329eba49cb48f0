"""What goes out with the package: licences beside what they cover, and nothing that reports home."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dladiff.diffusion.catalogue import EMBEDDED

ROOT = Path(__file__).resolve().parents[3]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
WEIGHTS = "dladiff/profiles/tiny/LICENSE-WEIGHTS.md"


def test_licence_files_are_named_and_say_what_they_cover() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert PROJECT["project"]["license-files"] == ["LICENSE", "NOTICE", WEIGHTS]
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert WEIGHTS.split("/")[0] in packages  # so it lies beside the weights in the wheel too
    terms, notice = (ROOT / WEIGHTS).read_text(), (ROOT / "NOTICE").read_text()
    for file in EMBEDDED.parent.rglob("*"):
        if file.suffix in (".onnx", ".safetensors"):
            relative = file.relative_to(EMBEDDED.parent).as_posix()
            assert f"`{relative}`" in terms or f"`{relative.split('/')[0]}/`" in terms, relative
    for collection in ("Labeled Faces in the Wild", "UTKFace"):
        assert collection in terms and collection in notice
    for page in ("README.md", "docs/encoders.md", "docs/decisions/0014-supply-chain.md"):
        assert "LICENSE-WEIGHTS.md" in (ROOT / page).read_text()


def test_the_wheel_holds_licences_and_weights(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="no hatchling: pip install hatchling")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (WEIGHTS, "licenses/LICENSE", "licenses/NOTICE", f"licenses/{WEIGHTS}"):
        assert any(found.endswith(name) for found in names)


def test_onnxruntime_reports_nothing_home(tmp_path: Path) -> None:
    """Versions from 1.29 on make a device identifier and a store of events in HOME, unless they are asked not to."""
    model = EMBEDDED.parent / "encoders" / "mobile.onnx"
    program = f"import dladiff, onnxruntime; onnxruntime.InferenceSession({str(model)!r})"
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
