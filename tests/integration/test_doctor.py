"""`dladiff doctor --address` on real clusters: each node's faults are named, one that does not answer too."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.cluster.submit import jobs
from tests.integration.heads import Head
from tests.integration.tokens import ray_token

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]


def test_each_node_of_a_cluster_has_a_row_and_its_faults(s3_uri: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "tests.integration.doctor_of_nodes", str(tmp_path), f"{s3_uri}/out"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, start_new_session=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    lines = found["table"]["lines"]
    assert found["table"]["code"] == 1, lines
    heading = next(i for i, line in enumerate(lines) if line.startswith("node "))
    rows = [line.split() for line in lines[heading + 1 : heading + 6]]
    states = {(row[2], *row[5:9]) for row in rows}
    here = version("dladiff")
    assert states == {
        ("-", "-", "-", "-", "-"),  # stopped
        (here, "-", "ok", "ok", "-"),  # the head: no actor fits, so no weights
        (here, "FAIL", "ok", "FAIL", "FAIL"),
        (here, "ok", "ok", "ok", "-"),
        ("0.0.1", "-", "-", "-", "-"),
    }, lines
    faults = "\n".join(line for line in lines if line.startswith("FAIL"))
    assert f"version: dladiff 0.0.1 in {sys.executable}; install dladiff {here}" in faults
    assert "answer: no answer within 90 s" in faults or "answer: no answer, Ray gave the node up" in faults
    assert "models: " in faults and "no InsightFace pack mine" in faults
    assert "storage: " in faults and "gpu: torch finds 0 of the 1 GPUs that Ray counts here" in faults
    assert len(faults.splitlines()) == 5
    plain = json.loads(found["json"]["lines"][-1])
    assert sorted(node["ok"] for node in plain["nodes"]) in (
        [False, False, False, True, True],
        [False, False, True, True],  # Ray has given the stopped node up
    )
    assert all(abs(node["clock_s"]) < 60 for node in plain["nodes"] if node["clock_s"] is not None)


def test_the_nodes_of_a_dashboard_are_asked_by_a_job_that_is_gone_afterwards(head: Head, tmp_path: Path) -> None:
    (tmp_path / "in" / "ann").mkdir(parents=True)
    (tmp_path / "in" / "ann" / "1.png").write_bytes(b"x")
    settings = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    call = ["doctor", "--config", str(tmp_path / "run.yaml"), "--address", head.dashboard, "--json"]
    with ray_token(head.token):
        found = CliRunner().invoke(main, call)
        assert found.exit_code == 0, found.output
        (node,) = json.loads(found.stdout)["nodes"]
        assert {check["name"]: check["ok"] for check in node["checks"]} == {
            "models": True,
            "input": True,
            "storage": True,
        }
        assert node["worker"] and node["versions"]["dladiff"] == version("dladiff")
        assert not [name for name in jobs(head.dashboard) if name.startswith("doctor-")]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_wrong_token_is_one_line(head: Head, tmp_path: Path) -> None:
    with ray_token("0" * 64):
        for words in (["doctor"], ["jobs"]):
            found = CliRunner().invoke(main, [*words, "--address", head.dashboard])
            (line,) = [line for line in found.output.splitlines() if "RAY_AUTH_TOKEN" in line]
            assert found.exit_code == (1 if words == ["doctor"] else 3), found.output
            assert len(line) < 600
