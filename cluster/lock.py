"""Print the lock of the image: every package that dladiff needs to run, as installed here, one exact version a line.

    .venv/bin/python cluster/lock.py > cluster/lock.txt

Used as constraints: what torch brings for CUDA is not installed on every machine, and torch itself names its versions.
"""

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def closure(needs: Iterable[str], extras: set[str], found: dict[str, str], seen: set[str]) -> None:
    """Add the versions of packages, and of what these need."""
    for text in needs:
        need = Requirement(text)
        name = canonicalize_name(need.name)
        told = f"{name}[{','.join(sorted(need.extras))}]"
        if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        if told in seen:
            continue
        seen.add(told)
        try:
            found[name] = Version(version(name)).public  # without +cpu
        except PackageNotFoundError:
            continue  # of another platform's build
        closure(requires(name) or [], set(need.extras), found, seen)


if __name__ == "__main__":
    packages: dict[str, str] = {}
    closure(tomllib.loads(PROJECT.read_text())["project"]["dependencies"], set(), packages, set())
    print("# Made by cluster/lock.py; versions of a run, for pip install -c.")
    sys.stdout.writelines(f"{name}=={packages[name]}\n" for name in sorted(packages))
