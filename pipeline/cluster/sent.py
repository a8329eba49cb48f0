"""What a job takes to the cluster beside its settings: scripts that find the Python of Ray there, whatever PATH is."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

RAY_PYTHON = Path(__file__).with_name("ray_python.sh")
SAME_VERSION = Path(__file__).with_name("same_version.py")


def command(script: Path, *arguments: str) -> str:
    """Return the entrypoint that runs a Python script of the job's folder with the Python of the head's Ray."""
    return f"exec sh {shlex.join([RAY_PYTHON.name, script.name, *arguments])}"


def put(folder: Path, scripts: Sequence[Path]) -> None:
    """Copy what `command` runs into the job's folder."""
    for script in (RAY_PYTHON, *scripts):
        shutil.copyfile(script, folder / script.name)
