"""The Python that a job runs with: the one of the raylet above it; and a version that is not the client's."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.cluster import sent
from pipeline.cluster.same_version import REFUSED, STARTED, refusal

ROOT = Path(__file__).parents[4]
PARENT = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1], shell=True).returncode)"


def job(folder: Path, wanted: str, python: str, path: str = os.defpath) -> "subprocess.CompletedProcess[str]":
    """Run the entrypoint below a process with the command line of a raylet that starts its workers with `python`."""
    sent.put(folder, [sent.SAME_VERSION])
    entrypoint = sent.command(sent.SAME_VERSION, wanted, "version")
    command = [sys.executable, "-c", PARENT, entrypoint, f"--python_worker_command={python} setup_worker.py --x=1"]
    environment = {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_job_runs_with_the_python_of_the_raylet_whatever_path_has(tmp_path: Path) -> None:
    done = job(tmp_path, version("dladiff"), sys.executable)
    started, printed = done.stdout.splitlines()
    assert done.returncode == 0 and printed == version("dladiff")
    assert started.startswith(f"{STARTED}{version('dladiff')}, Python 3.") and sys.executable in started


def test_another_version_ends_with_one_line(tmp_path: Path) -> None:
    done = job(tmp_path, "9.9.9", sys.executable)
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{REFUSED}dladiff {version('dladiff')} in the Python of its head ({sys.executable})")
    assert "install 9.9.9 on every node" in line


def test_a_python_of_path_is_taken_where_the_raylets_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    done = job(tmp_path, version("dladiff"), "/nowhere/python", f"{tmp_path / 'bin'}:{os.defpath}")
    assert done.returncode == 0, done.stderr


def test_no_python_with_ray_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sh", "tr", "sed"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    done = job(tmp_path, "0.1.0", "/nowhere/python", str(tmp_path / "bin"))
    assert done.returncode == 2 and done.stderr.startswith(f"{REFUSED}no Python with Ray")


def test_no_dladiff_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cluster import same_version

    def none(_: str) -> str:
        raise same_version.PackageNotFoundError

    monkeypatch.setattr(same_version, "version", none)
    line = refusal("0.1.0")
    assert line is not None and line.startswith(f"{REFUSED}no dladiff in the Python of its head (")
