"""What holds in every tier: one thread a process, no Ray of this machine, where the test assets are."""

import gc
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent
RAY_TMPDIR = tempfile.mkdtemp(prefix="dt-")  # short: sockets below it may have 107 characters
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # results must not depend on the number of cores
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else 15: on a busy machine Ray's workers would hardly be given a turn
    "RAY_TMPDIR": RAY_TMPDIR,  # not the folder in which `ray start` notes a cluster of this machine
}
FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # of another Ray

os.environ |= ENVIRONMENT  # here, since numpy, torch and Ray read it when they are imported
for name in FOREIGN:
    os.environ.pop(name, None)

settings.register_profile("dladiff", deadline=None)  # on a busy machine any example may take long
settings.load_profile("dladiff")


TIERS = {"networks", "ray", "slow", "gpu"}
TIER = re.compile(r"\bmark\.(networks|ray|slow|gpu)\b")
TIER_OF_ALL = re.compile(r"^pytestmark = \[?pytest\.mark\.(networks|ray|slow|gpu)\b", re.MULTILINE)


def may_hold(text: str, markers: str) -> bool:
    """Say whether a test file with this text may hold a test that `-m` with these markers asks for."""
    if not markers or not set(re.findall(r"\w+", markers)) <= TIERS | {"and", "or", "not"}:
        return True
    named, of_all = set(TIER.findall(text)), set(TIER_OF_ALL.findall(text))
    others = sorted(named - of_all)
    sets = (of_all.union(some) for size in range(len(others) + 1) for some in itertools.combinations(others, size))
    wanted = Expression.compile(markers)
    return any(wanted.evaluate(lambda name, /, marks=marks, **_: name in marks) for marks in sets)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without a test of this tier: their imports (torch, diffusers, Ray) take many seconds."""
    if not collection_path.match("test_*.py") or may_hold(collection_path.read_text(), config.option.markexpr):
        return None
    return True


def pytest_collection_finish() -> None:
    """Keep the modules, which stay until the end, out of each later collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(RAY_TMPDIR, ignore_errors=True)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of real photos, encoders and detectors (DLADIFF_ASSETS, default ../shared/assets).

    Absent: the test skips; with DLADIFF_REQUIRE_ASSETS=1 it fails, so that a continuous run cannot pass by skipping.
    """
    folder = Path(os.environ.get("DLADIFF_ASSETS") or "../shared/assets")
    folder = folder if folder.is_absolute() else REPOSITORY / folder
    if folder.is_dir():
        return folder
    sentence = f"no test assets in {folder}: set DLADIFF_ASSETS to the folder that holds them"
    if os.environ.get("DLADIFF_REQUIRE_ASSETS") == "1":
        pytest.fail(sentence)
    pytest.skip(sentence)


@pytest.fixture(autouse=True)
def _umask_kept() -> Iterator[None]:
    """Commands and workers set the umask of their process, which here is that of all tests."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
