"""What a submitted job gets: the name of the job and ports for the driver's metrics."""

from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.cli.main import main
from pipeline.cluster.job_file import load_job
from pipeline.cluster.submit import METRICS_PORTS, _start
from pipeline.telemetry.driver import served


class Head:
    """Takes a job as Ray's client does."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def submit_job(self, **given: Any) -> None:
        self.given = given


def metrics_option(command: str) -> str | None:
    (option,) = (p for p in main.commands[command].params if p.name == "metrics")
    value, _ = option.consume_value(click.Context(main.commands[command]), {})
    return value


def test_a_submitted_job_serves_metrics_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump({"name": "faces", "run": {"input": "s3://a/in", "output": "s3://a/out"}})
    )
    head = Head()
    assert _start(head, load_job(tmp_path / "job.yaml"), "dladiff-faces-1")
    for name, value in head.given["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)
    for command in ("protect", "nightly"):
        assert metrics_option(command) == METRICS_PORTS
    with served(None) as driver:
        driver.begin(identities=1, tasks=1)
    (labels,) = {tuple(s.labels.items()) for f in driver.registry.collect() for s in f.samples}
    assert dict(labels) == {"job": "faces", "tenant": ""}
    monkeypatch.setenv("DLADIFF_METRICS", "0.0.0.0:9109")  # of the head's pod
    assert metrics_option("protect") == "0.0.0.0:9109"
