"""Who may read new files, and that no process of ours dumps a core."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from dladiff.errors import ConfigError
from pipeline.cli.main import main
from pipeline.config import run_config
from pipeline.process import private
from pipeline.process.private import chosen_umask, private_files
from pipeline.telemetry.outcome import Outcome, write_textfile
from tests.support.outputs import protected_output

LIMITS = """
import json, os, resource
from pipeline.config import RunConfig
from pipeline.evaluate.config import EvaluateConfig
{imports}
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
{does}
print(json.dumps([resource.getrlimit(resource.RLIMIT_CORE), os.umask(0)]))
"""
PROCESSES = {
    "actor": (
        "from pipeline.run.actor import ProtectIdentity",
        "ProtectIdentity(RunConfig(input='i', output='o', umask='027').to_dict(), 'r', 'd')",
    ),
    "evaluation": (
        "from pipeline.evaluate.actor import EvaluateIdentity",
        "EvaluateIdentity(EvaluateConfig(output='o', results='r', umask='027').to_dict(), 'r')",
    ),
    "command": (
        "import sys; from click.testing import CliRunner; from pipeline.cli.main import main; "
        "os.environ['DLADIFF_UMASK'] = '027'",
        "CliRunner().invoke(main, ['verify', '--output', '/none'])",
    ),
}


def modes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in (folder, *folder.rglob("*")):
        yield str(path), stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("kind", PROCESSES)
def test_no_core_is_dumped_and_the_umask_holds(kind: str) -> None:
    code = LIMITS.format(imports=PROCESSES[kind][0], does=PROCESSES[kind][1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == [[0, 0], 0o027]


@pytest.mark.parametrize(
    ("value", "kept"), [("077", "077"), ("027", "027"), (0o027, "027"), ("0o022", "0o022"), (0, "000")]
)
def test_a_umask_is_octal(value: str | int, kept: str) -> None:
    assert run_config(None, {"input": "i", "output": "o", "umask": value}).umask == kept


@pytest.mark.parametrize("value", ["", "x", "700", "0777", "0x7", "-1", 27, 77, 0o700, -1, "099"])
def test_a_umask_that_cannot_be_meant_is_refused(value: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"umask: .* is no umask"):
        run_config(None, {"input": "i", "output": "o", "umask": value})
    if isinstance(value, str) and value:
        monkeypatch.setenv(private.VARIABLE, value)
        with pytest.raises(ConfigError, match=r"DLADIFF_UMASK: .* is no umask"):
            chosen_umask()
        assert CliRunner().invoke(main, ["verify", "--output", "o"]).exit_code == 2


def test_the_environment_decides_where_no_setting_does(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"input": "i", "output": "o"}
    assert run_config(None, places).umask == "077"
    monkeypatch.setenv(private.VARIABLE, "027")
    assert run_config(None, places).umask == "027"
    assert run_config(None, places | {"umask": "077"}).umask == "077"


def test_it_does_not_decide_what_is_done_again() -> None:
    one, other = (run_config(None, {"input": "i", "output": "o", "umask": umask}) for umask in ("077", "027"))
    assert one.config_digest() == other.config_digest()


@pytest.mark.parametrize(("umask", "most"), [("077", 0o700), ("027", 0o750)])
def test_commands_write_files_that_others_do_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: str, most: int
) -> None:
    monkeypatch.setenv(private.VARIABLE, umask)
    os.umask(0o022)
    with private_files(umask):
        output = protected_output(tmp_path, {"ann": ["1.png"]})
    for more in ([], ["--html", str(tmp_path / "pages" / "page.html")]):
        os.umask(0o022)
        assert CliRunner().invoke(main, ["report", "--output", output.uri, *more]).exit_code == 0
    asked = ["evaluate", "--output", output.uri, "--results", str(tmp_path / "results"), "--tables-only"]
    os.umask(0o022)
    assert CliRunner().invoke(main, asked).exit_code == 2  # there is no row yet
    for folder in ("out", "pages", "results"):
        found = dict(modes(tmp_path / folder))
        assert found and not {path: oct(mode) for path, mode in found.items() if mode & ~most}
    group = {mode for path, mode in modes(tmp_path / "out") if path.endswith((".png", ".html"))}
    assert group == {0o666 & ~int(umask, 8)}


def test_the_exporter_reads_what_was_written(tmp_path: Path) -> None:
    with private_files("077"):
        path = write_textfile(tmp_path, Outcome(job="j", tenant="t", exit_code=0, ended=1.0, identities={}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
