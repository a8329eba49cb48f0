"""Scenes, the real S3 server of the integration tests, and the table of outcomes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import OUTCOMES, PEOPLE, Scene
from tests.faults.proxy import FaultyProxy
from tests.integration.conftest import s3_endpoint, s3_uri

__all__ = ["s3_endpoint", "s3_uri"]


@pytest.fixture(scope="session", autouse=True)
def table() -> Iterator[None]:
    """Print fault and outcome of every test that held, at the end."""
    OUTCOMES.clear()
    yield
    width = max((len(fault) for fault, _ in OUTCOMES), default=0)
    for fault, outcome in OUTCOMES:
        print(f"\n| {fault:<{width}} | {outcome} |", end="")
    print()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "in"), str(tmp_path / "out"), tmp_path)


@pytest.fixture
def bucket(s3_uri: str, s3_endpoint: str, tmp_path: Path) -> Iterator[tuple[Scene, FaultyProxy]]:
    with FaultyProxy(s3_endpoint) as proxy:
        scene = Scene(f"{s3_uri}/in", f"{s3_uri}/out", tmp_path, environment={"AWS_ENDPOINT_URL": proxy.endpoint})
        scene.fill(*PEOPLE)
        yield scene, proxy
