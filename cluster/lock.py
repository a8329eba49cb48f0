"""Write the lock of the image: every package it installs, one exact version a line, with the SHA-256 of its wheels.

    .venv/bin/python cluster/lock.py > cluster/lock.txt

Versions are those installed beside this program. pip resolves them against PyPI without installing anything, once for
Linux on x86_64 and once on aarch64. That adds what PyPI's torch brings for CUDA and what builds this package.
The hashes are those of the wheels that pip chose, so the image builds on both processors, with Python 3.11 alone.

Limits: run it on Linux with Python 3.11, since pip takes markers such as `platform_system` from the machine it runs on,
also for the other processor. A package without a wheel stops it. pip itself and Debian's packages are not locked.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PYTHON = "3.11"  # of the image
GLIBC = 36  # minor version of Debian bookworm's, the image's
MACHINES = ("x86_64", "aarch64")
PIP = "pip>=23.3"  # reads metadata alone in a dry run; an older one downloads gigabytes of wheels


def closure(needs: Iterable[str], extras: set[str], found: dict[str, str], seen: set[str]) -> None:
    """Add the versions of packages, and of what these need."""
    for text in needs:
        need = Requirement(text)
        name = canonicalize_name(need.name)
        key = f"{name}[{','.join(sorted(need.extras))}]"
        if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        if key in seen:
            continue
        seen.add(key)
        try:
            found[name] = Version(version(name)).public  # without +cpu
        except PackageNotFoundError:
            continue  # of another platform's build
        closure(requires(name) or [], set(need.extras), found, seen)


def needed() -> dict[str, str]:
    """Return the installed version of each package that dladiff needs to run."""
    found: dict[str, str] = {}
    closure(tomllib.loads(PROJECT.read_text())["project"]["dependencies"], set(), found, set())
    return found


def resolved(wanted: list[str], machine: str, python: Path) -> list[dict[str, Any]]:
    """Return the report of `python`'s pip of what it would install on Linux of a machine: each wheel with its hash."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(5, GLIBC + 1)]
    platforms += [f"{kind}_{machine}" for kind in ("manylinux2014", "manylinux2010", "manylinux1")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(python), "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--only-binary=:all:", "--python-version", PYTHON, "--target", folder, "--report", str(report)]
        command += [word for platform in platforms for word in ("--platform", platform)]
        # PyPI alone: wheels of a local folder, such as torch's for the CPU, have other hashes
        alone = {name: value for name, value in os.environ.items() if name not in ("PIP_FIND_LINKS", "PIP_CONSTRAINT")}
        subprocess.run([*command, *wanted], check=True, stdout=sys.stderr, env=alone | {"PIP_CONFIG_FILE": os.devnull})
        installed: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return installed


def lines(reports: Iterable[list[dict[str, Any]]]) -> list[str]:
    """Return the lines of the lock. Raises ValueError where two machines would get two versions of a package."""
    versions: dict[str, str] = {}
    hashes: dict[str, set[str]] = {}
    for item in (item for report in reports for item in report):
        name, pin = canonicalize_name(item["metadata"]["name"]), item["metadata"]["version"]
        if versions.setdefault(name, pin) != pin:
            raise ValueError(f"{name}: {versions[name]} on one machine and {pin} on another; pin it in constraints.txt")
        hashes.setdefault(name, set()).add(item["download_info"]["archive_info"]["hashes"]["sha256"])
    return [
        " \\\n    ".join([f"{name}=={versions[name]}", *(f"--hash=sha256:{value}" for value in sorted(hashes[name]))])
        for name in sorted(versions)
    ]


if __name__ == "__main__":
    wanted = [f"{name}=={pin}" for name, pin in needed().items()]
    wanted += tomllib.loads(PROJECT.read_text())["build-system"]["requires"]
    print(
        "# Made by cluster/lock.py: Linux on x86_64 and aarch64, Python 3.11; pip install --require-hashes -r lock.txt"
    )
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, stdout=sys.stderr)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", PIP], check=True, stdout=sys.stderr)
        print("\n".join(lines([resolved(wanted, machine, python) for machine in MACHINES])))
