"""A cluster of several nodes: one that cannot work, none that can, some that come late."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


def run(folder: Path, *names: str) -> dict[str, Any]:
    """Run on a cluster of these nodes; see `tests.integration.cluster_of_nodes`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "tests.integration.cluster_of_nodes", str(folder), *names]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_a_bad_node_is_taken_out_and_named_and_the_others_do_its_work(tmp_path: Path) -> None:
    found = run(tmp_path, "bad one", "good")
    assert (found["done"], found["failed"], found["code"], found["nodes"]) == (8, 0, 0, {"good": 8})
    taken_out = [line for line in found["warnings"] if "taken out" in line]
    assert len(taken_out) == 1 and "no weights on bad one" in taken_out[0]


def test_no_node_that_can_work_ends_the_run_with_one_line(tmp_path: Path) -> None:
    error = run(tmp_path, "bad one", "bad two")["error"]
    assert error.startswith("no worker of the cluster can work. ") and len(error.splitlines()) == 1
    assert "no weights on bad one" in error and "no weights on bad two" in error


def test_when_the_last_node_stops_working_the_run_ends_and_does_not_wait_for_others(tmp_path: Path) -> None:
    found = run(tmp_path, "tires")
    assert (
        found["error"].startswith("no worker of the cluster can work. ") and "weights lost on tires" in found["error"]
    )
    assert len(list((tmp_path / "out" / "done").iterdir())) == 2


def test_a_run_uses_nodes_that_come_late(tmp_path: Path) -> None:
    found = run(tmp_path, "--late", "first", "second")
    assert (found["done"], found["code"]) == (60, 0)
    assert set(found["nodes"]) == {"first", "second"}, "the pool stayed at the size of the first second"
