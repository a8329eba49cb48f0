"""Fixtures of every tier: where the test assets are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
