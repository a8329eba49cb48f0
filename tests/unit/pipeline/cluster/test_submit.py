"""What a submitted job gets: the name of the job and ports for the driver's metrics."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from dladiff.errors import ConfigError
from pipeline.cli.main import main
from pipeline.cluster import submit
from pipeline.cluster.job_file import load_job
from pipeline.cluster.same_version import REFUSED
from pipeline.cluster.submit import METRICS_PORTS, _check_version, _start
from pipeline.telemetry.driver import served


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_or_missing_token_is_one_line(status: int) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        found = CliRunner().invoke(main, ["jobs", "--address", address])
        checked = CliRunner().invoke(main, ["doctor", "--address", address])
    finally:
        server.shutdown()
        server.server_close()
    assert found.exit_code == 3
    assert found.output.splitlines()[-1].startswith("error: the Ray cluster refuses this client: set RAY_AUTH_TOKEN")
    assert checked.exit_code == 1 and "FAIL  ray: the Ray cluster refuses this client" in checked.output


class SlowHead:
    """Knows what a job printed some answers before it knows that the job ended, as Ray's head does."""

    def __init__(self) -> None:
        self.statuses = iter(["RUNNING", "RUNNING", "RUNNING", "FAILED"])
        self.status = ""

    def get_job_info(self, _: str) -> Any:
        self.status = next(self.statuses, self.status)
        return SimpleNamespace(status=SimpleNamespace(value=self.status), driver_exit_code=2)

    def get_job_logs(self, _: str) -> str:
        return f"{REFUSED}dladiff 1\n"


def test_a_refused_job_has_ended_when_its_submission_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    head = SlowHead()
    with pytest.raises(ConfigError, match="this cluster has dladiff 1"):
        _check_version(head, "dladiff-faces-1")
    assert head.status == "FAILED"


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
