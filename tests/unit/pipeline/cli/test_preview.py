"""The command `preview`: what it prints and writes, errors as one line, and processes that end with it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import skimage.data
from click.testing import CliRunner
from PIL import Image

from dladiff.settings.presets import STRENGTHS
from pipeline.cli.main import main
from tests.support.model_layouts import write_layout
from tests.support.pages import Page
from tests.support.photo_bytes import animated, one_tile, smooth

WAIT_S = 120  # only a failure, or a very busy machine, waits as long


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a photo, and settings with a fake method."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(smooth()).save(tmp_path / "ann.png")
    (tmp_path / "fake.yaml").write_text("protector: tests.support.fakes:AddNoise\noutput: {format: png}\n")
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["preview", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_one_page_and_a_line_for_each_strength(folder: Path) -> None:
    code, out, err = call("ann.png", "--config", "fake.yaml")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*STRENGTHS, "page"]
    assert lines[0].startswith("faint: SSIMULACRA2 90.0, face 80.0, PSNR 48.2 dB, cosine 0.10 by fake, ")
    assert lines[-1] == "page: ann-preview.html"
    assert (folder / "ann-preview.html").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["ann-preview.html", "ann.png", "fake.yaml"]
    code, out, _ = call(f"file://{folder}/ann.png", "--config", "fake.yaml", "--output", "other.html", "--json")
    found = json.loads(out)
    assert (code, found["page"], list(found["strengths"])) == (0, "other.html", list(STRENGTHS))
    assert found["strengths"]["faint"]["ssimulacra2"] == 90.0


@pytest.mark.parametrize(
    ("photo", "text"),
    [
        ("absent.png", "absent.png: No such file or directory; give one photo"),
        (".", ".: "),
        ("/dev/null", "/dev/null: is not a file; give one photo"),
        ("pipe.png", "pipe.png: is not a file; give one photo"),
        ("", "the address is empty"),
        ("s3://bucket/a.jpg", "a preview reads a photo of this machine"),
        ("http://host/a.jpg", "unknown storage http://host/a.jpg"),
        ("text.jpg", "text.jpg: not an image"),
        ("empty.jpg", "empty.jpg: the file is empty"),
        ("torn.png", "torn.png: the file is "),
        ("moving.gif", "moving.gif: animated"),
        ("small.png", "small.png: too small"),
        ("tile.tif", "tile.tif: a TIFF with a tile of"),
        ("large.png", "large.png: too large: it has more than max_photo_bytes = 90000 bytes"),
        ("wide.png", "wide.png: too large: 200 x 100 px is more than max_pixels = 10000"),
        ("\x1b[2J\n.png", "\\x1b[2J\\n.png: No such file"),
    ],
)
def test_a_photo_that_cannot_be_used_is_one_line(folder: Path, photo: str, text: str) -> None:
    limits = "max_photo_bytes: 90000\nmax_task_bytes: 900000\nmax_pixels: 10000\n"
    (folder / "fake.yaml").write_text(f"protector: tests.support.fakes:AddNoise\n{limits}")
    os.mkfifo(folder / "pipe.png")
    (folder / "text.jpg").write_text("<html>")
    (folder / "empty.jpg").touch()
    (folder / "torn.png").write_bytes((folder / "ann.png").read_bytes()[:200])
    (folder / "moving.gif").write_bytes(animated("GIF"))
    (folder / "tile.tif").write_bytes(one_tile(64, 4096))
    (folder / "large.png").write_bytes((folder / "ann.png").read_bytes() + bytes(90000))
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    Image.new("RGB", (200, 100)).save(folder / "wide.png")
    before = sorted(folder.iterdir())
    code, out, err = call(photo, "--config", "fake.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and text in err and len(err.splitlines()) == 1, err
    assert sorted(folder.iterdir()) == before


def test_wrong_settings_are_reported_before_anything_begins(folder: Path) -> None:
    write_layout(folder / "sd15", "sd15")
    (folder / "run.yaml").write_text("profile: sd15\nmethod: {model: sd15}\n")
    code, out, err = call("ann.png", "--config", "run.yaml")
    assert (code, out) == (2, "") and "error: encoders: the profile sd15 has no identity encoders of its own" in err
    code, _, err = call("ann.png", "--profile", "tny")
    assert code == 2 and "did you mean tiny?" in err
    code, _, err = call("ann.png", "--output", "fake.yaml")
    assert code == 2 and err == "error: fake.yaml: exists and is no preview page; name another file with --output\n"
    code, _, err = call("ann.png", "--output", ".")
    assert code == 2 and "is a directory" in err


def test_a_photo_that_nothing_protects_is_exit_code_1(folder: Path) -> None:
    (folder / "fake.yaml").write_text("protector: tests.support.fakes:NoFace\n")
    code, out, err = call("ann.png", "--config", "fake.yaml")
    assert code == 1 and err == "note: no face found: nothing protects it\n"
    assert "face" not in out and "Nothing protects this photo" in Page((folder / "ann-preview.html").read_text()).text


def test_a_worker_that_dies_is_one_line(folder: Path) -> None:
    (folder / "fake.yaml").write_text("protector: tests.support.fakes:Dies\n")
    code, out, err = call("ann.png", "--config", "fake.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: ann.png: a process that protected it was ended") and len(err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_command(folder: Path, number: signal.Signals) -> None:
    (folder / "fake.yaml").write_text("protector: tests.support.fakes:WaitsAtGate\n")
    environment = os.environ | {"DLADIFF_FAKE_GATE": str(folder / "gate"), "DLADIFF_FAKE_BEGUN": str(folder / "begun")}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "preview", "ann.png", "--config", "fake.yaml"],
        env=environment | {"PYTHONPATH": str(Path(__file__).resolve().parents[4])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    workers: set[str] = set()
    try:
        _until(lambda: (folder / "begun").exists())
        workers = _children(process.pid)
        assert workers
        process.send_signal(number)
        _, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    if number != signal.SIGKILL:
        assert process.returncode == 1 and err.startswith("stopped: ") and len(err.splitlines()) == 1, err
    _until(lambda: not any(_runs(pid) for pid in workers))
    assert not (folder / "ann-preview.html").exists()


def _until(condition) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _children(pid: int) -> set[str]:
    return {child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()}


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.networks
def test_the_method_itself_on_a_small_portrait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one process, which imports the networks once
    quick = "{finetuning: {iter_ft: 1, iter_opt: 1}, zero_shot: {max_steps: 4}, joint: {steps: 4}}"
    (folder / "quick.yaml").write_text(f"method: {quick}\n")
    Image.fromarray(skimage.data.astronaut()[:256, 96:352]).save(folder / "astronaut.png")
    code, out, err = call("astronaut.png", "--config", "quick.yaml", "--json")
    assert code == 0 and err == "", err
    found = json.loads(out)["strengths"]
    for one in found.values():
        assert one["faces"] == 1 and one["status"] == "protected" and one["ssimulacra2"] < 100
        assert {(entry["encoder"], entry["optimised"]) for entry in one["similarity"]} == {
            ("residual", True),
            ("mobilefacenet", True),
            ("mobile", False),
        }
    Image.new("RGB", (128, 128), (90, 110, 120)).save(folder / "wall.png")
    code, out, err = call("wall.png", "--config", "quick.yaml")
    assert code == 0 and err == "note: no face found: layer 2 has nothing to protect\n"
    assert "No face was found" in (folder / "wall-preview.html").read_text()
