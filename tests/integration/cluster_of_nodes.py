"""A run on a cluster of named nodes, in a process of its own: Ray's client does not outlive its cluster safely.

    python -m tests.integration.cluster_of_nodes FOLDER NAME...          nodes that are there from the start
    python -m tests.integration.cluster_of_nodes FOLDER --late NAME...   each comes when the one before has done a task

Prints JSON: done, failed and exit code of the run or its error, photos by node, and warnings.
"""

import io
import json
import logging
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dladiff.errors import DladiffError
from pipeline.config import RunConfig
from pipeline.run import fitness
from pipeline.run.driver import protect
from pipeline.storage.open import open_storage
from tests.faults.harness import Scene, until
from tests.integration.patience import patient
from tests.integration.tokens import ray_token


class Warnings(logging.Handler):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.lines.append(record.getMessage())


def scene(folder: Path, people: int) -> Scene:
    """Return the input of some people and a protector that says where it runs."""
    found = Scene(str(folder / "in"), str(folder / "out"), folder)
    found.settings = {"protector": "tests.support.fakes:Placed", "max_actors": None}
    found.fill(*(f"p{number:02}" for number in range(people)), photos=1)
    return found


def at_once(cluster: Any, folder: Path, names: list[str]) -> dict[str, Any]:
    """Run on nodes that are all there."""
    for name in names:
        add(cluster, name)
    found, heard = scene(folder, 8), Warnings()
    logging.getLogger("pipeline").addHandler(heard)
    config = RunConfig(
        input=found.source, output=found.target, min_actors=len(names), protector="tests.support.fakes:Placed"
    )
    try:
        summary = protect(config)
    except DladiffError as error:
        return {"error": str(error), "warnings": heard.lines}
    return {"done": summary.done, "failed": summary.failed, "code": summary.exit_code, "warnings": heard.lines}


def late(cluster: Any, folder: Path, names: list[str]) -> dict[str, Any]:
    """Run while nodes come one after the other."""
    found = scene(folder, 60)
    process = found.start()
    until(lambda: (folder / "out" / "plan").exists(), "the plan")
    for name in names:
        target = len(found.done()) + 1
        add(cluster, name)
        until(partial(_reached, found, target), "another identity")
    ended = found.end(process)
    return {"done": ended.facts.get("done"), "failed": ended.facts.get("failed"), "code": ended.code}


def _reached(found: Scene, count: int) -> bool:
    return len(found.done()) >= count


def add(cluster: Any, name: str) -> None:
    """Add a node of one CPU."""
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000, env_vars={"DLADIFF_NODE": name})


def main() -> None:
    """Run, and print what came of it."""
    from ray.cluster_utils import Cluster

    folder, *names = sys.argv[1:]
    fitness.IDLE_S, fitness.NONE_FIT_S = 2.0, 20.0
    with ray_token(), patient():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        os.environ["RAY_ADDRESS"] = cluster.address
        if names[0] == "--late":
            result = late(cluster, Path(folder), names[1:])
        else:
            result = at_once(cluster, Path(folder), names)
        if "error" not in result:
            table = pq.read_table(io.BytesIO(open_storage(f"{folder}/out").get("manifest/photos.parquet")))
            result["nodes"] = Counter(table["reason"].to_pylist())
        cluster.shutdown()
    print(json.dumps(result), flush=True)
    os._exit(0)  # Ray's handlers at exit wait for a cluster that is gone


if __name__ == "__main__":
    main()
