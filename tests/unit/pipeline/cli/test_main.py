"""What all commands share: help, version, completion, addresses, signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place in ("ann/1.png", "ann/2.png", "bob/1.png"):
        file = tmp_path / "in" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(file)
    return tmp_path / "in"


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("command", ["verify", "status", "failed", "finalise", "report", "retention"])
@pytest.mark.parametrize(
    ("address", "text"), [("", "is empty"), ("s3://", "no bucket"), ("ftp://a/b", "unknown storage")]
)
def test_an_address_that_cannot_be_is_bad_usage(command: str, address: str, text: str) -> None:
    code, out, err = call(command, "--output", address)
    assert (code, out) == (2, "") and text in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminated_command_says_so_in_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def struck(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr("pipeline.run.plan.make_plan", struck)
    code, out, err = call("plan", "--input", str(photos), "--output", str(tmp_path / "out"))
    assert (code, out, err) == (1, "", "stopped: what is done is kept; run the same command again to continue\n")
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGINT, interrupt)


@pytest.mark.parametrize("arguments", [["--help"], ["protect", "--help"], ["status", "--output", "."]])
def test_neither_torch_nor_ray_is_imported(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code, e.code\n"
        "print(sorted({'torch', 'ray', 'boto3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_completion_prints_a_script_for_each_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = call("completion", shell)
        assert code == 0 and "_DLADIFF_COMPLETE" in out


def test_completion_knows_commands_and_options() -> None:
    from click.shell_completion import BashComplete

    offered = [item.value for item in BashComplete(main, {}, "dladiff", "X").get_completions(["protect"], "--re")]
    assert offered == ["--retry-failed", "--reason"]


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        yield from _commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]


@pytest.mark.parametrize("command", sorted(_commands(main)), ids=" ".join)
def test_h_is_help_everywhere(command: tuple[str, ...]) -> None:
    short, long = call(*command, "-h"), call(*command, "--help")
    assert short == long and short[0] == 0 and short[1].startswith("Usage:")


def test_version_is_an_option_too() -> None:
    assert call("--version") == (0, f"dladiff {call('version')[1]}", "")
