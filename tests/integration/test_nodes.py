"""A cluster of several nodes: one that cannot work, one that comes late, none at all."""

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dladiff.errors import ModelError
from pipeline.config import RunConfig
from pipeline.run import fitness
from pipeline.run.driver import Summary, protect
from pipeline.storage.open import open_storage
from tests.faults.harness import Scene, until
from tests.integration.tokens import ray_token
from tests.support.photo_bytes import flat_photo

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("collected"), pytest.mark.filterwarnings("ignore")]
PEOPLE = 8
Add = Callable[..., Any]


@pytest.fixture
def add_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Return a function that adds a node of one CPU with a name to a cluster whose head has none."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    with ray_token():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)

        def add(name: str) -> Any:
            return cluster.add_node(num_cpus=1, object_store_memory=100_000_000, env_vars={"DLADIFF_NODE": name})

        try:
            yield add
        finally:
            cluster.shutdown()


def run(folder: Path, people: int = PEOPLE, **settings: Any) -> Summary:
    source, target = str(folder / "in"), str(folder / "out")
    photos = open_storage(source, create=True)
    for number in range(people):
        photos.put(f"p{number}/1.png", flat_photo(10 + number))
    return protect(RunConfig(input=source, output=target, protector="tests.support.fakes:Placed", **settings))


def nodes(folder: Path) -> Counter[str]:
    """Return how many photos each node protected."""
    table = pq.read_table(io.BytesIO(open_storage(str(folder / "out")).get("manifest/photos.parquet")))
    return Counter(table["reason"].to_pylist())


def test_a_bad_node_is_taken_out_and_named_and_the_others_do_its_work(
    add_node: Add, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "IDLE_S", 2.0)
    add_node("bad one")
    add_node("good")
    with caplog.at_level(logging.WARNING):
        summary = run(tmp_path, min_actors=2)
    assert (summary.done, summary.failed, summary.exit_code) == (PEOPLE, 0, 0)
    assert nodes(tmp_path) == {"good": PEOPLE}
    taken_out = [record.message for record in caplog.records if "taken out" in record.message]
    assert len(taken_out) == 1 and "no weights on bad one" in taken_out[0]


def test_no_node_that_can_work_ends_the_run_with_one_line(
    add_node: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "NONE_FIT_S", 20.0)  # until both have answered
    add_node("bad one")
    add_node("bad two")
    with pytest.raises(ModelError, match="no worker of the cluster can work") as found:
        run(tmp_path, min_actors=2)
    assert "no weights on bad one" in str(found.value) and "no weights on bad two" in str(found.value)


def test_a_run_uses_nodes_that_come_late(add_node: Add, tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "in"), str(tmp_path / "out"), tmp_path)
    scene.settings = {"protector": "tests.support.fakes:Placed", "max_actors": None}
    scene.fill(*(f"p{number:02}" for number in range(60)), photos=1)
    process = scene.start()  # nodes are added by the main thread alone
    until(lambda: (tmp_path / "out" / "plan").exists(), "the plan")
    add_node("first")
    until(scene.done, "the first identity")
    add_node("second")
    ended = scene.end(process)
    assert (ended.code, ended.facts["done"]) == (0, 60), ended.errors
    assert set(nodes(tmp_path)) == {"first", "second"}, "the pool stayed at the size of the first second"
