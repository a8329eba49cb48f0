"""The real Prometheus, with the rules and the scrape jobs of cluster/, beside a real run that is made to stall.

One head, one job, one Prometheus: three people are done with, one never ends. What Prometheus holds is compared with
what was given to the run, every panel of the dashboard must have data, the alert for a stalled run must fire and stay
when the driver dies. Waits are cut short in a copy of the files. A page of the test stands in for the node exporter,
with the outcome of a night, and for GPUs, which this machine lacks.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.cluster import submit
from pipeline.cluster.job_file import load_job
from pipeline.telemetry.outcome import Outcome, write_textfile
from tests.integration.heads import started_head
from tests.integration.ports import free_ports
from tests.integration.tokens import ray_token

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]
CLUSTER = Path(__file__).resolve().parents[2] / "cluster" / "prometheus"
PATIENCE_S = 240  # only a failure, or a very busy machine, waits as long
SHORTER: dict[str, dict[str, str | None]] = {
    "prometheus.yml": {"scrape_interval: 15s": "scrape_interval: 2s", "evaluation_interval: 15s": None},
    "rules/alerts.yml": {
        "longest_task_seconds[6h]), 3600)": "longest_task_seconds[6h]), 4)",
        "<= 2 * last": "<= 0 * last",
        "for: 5m": "for: 1s",
        "for: 10m": "for: 1s",
    },
}
"""File to texts and what stands for them in the copy; a text that is no longer there fails the test."""
DASHBOARD = CLUSTER.parent / "grafana" / "dladiff.json"
BESIDE = """\
ray_node_gpus_utilization{GpuIndex="0", GpuDeviceName="none"} 4
ray_node_gram_used{GpuIndex="0", GpuDeviceName="none"} 100
ray_dladiff_storage_retries_total{job="watched"} 1
"""
"""What this machine cannot have: values of a GPU, and retries, which need an overloaded storage."""


def prometheus() -> str:
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("no prometheus on PATH: install Debian's package prometheus")
    return found


def shortened(folder: Path, head: Path, driver: int, node: int) -> Path:
    """Copy the configuration: Ray's folder beside it, ports of driver and node exporter, and waits of a second."""
    shutil.copytree(CLUSTER, folder)
    (folder / "ray").symlink_to(head)
    for name, texts in SHORTER.items():
        text = (folder / name).read_text()
        for old, new in texts.items():
            assert old in text, f"{name} has no {old!r} any more"
            text = text.replace(old, new or old.replace("15s", "1s"))
        (folder / name).write_text(text)
    config = (folder / "prometheus.yml").read_text()
    for usual, port in ((9109, driver), (9100, node)):
        assert f"127.0.0.1:{usual}" in config
        config = config.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{port}")
    (folder / "prometheus.yml").write_text(config)
    return folder / "prometheus.yml"


@contextlib.contextmanager
def started_prometheus(config: Path, log: Path) -> Iterator[str]:
    """Start it on a free port, wait until it is ready, end it by its pid."""
    (port,) = free_ports(1)
    command = [prometheus(), f"--config.file={config}", f"--storage.tsdb.path={log.parent / 'tsdb'}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: asked(f"{address}/-/ready") is not None, lambda: log.read_text()[-2000:])
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


def asked(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            text: str = reply.read().decode()
            return text
    except (urllib.error.URLError, OSError):
        return None


def query(address: str, expression: str, label: str = "") -> dict[str, float]:
    """The value of an expression by a label of its series."""
    text = asked(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    found = json.loads(text)["data"]["result"] if text else []
    return {series["metric"].get(label, ""): float(series["value"][1]) for series in found}


@contextlib.contextmanager
def served_page(text: str) -> Iterator[int]:
    """Serve one page of metrics; yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # a busy machine answers late
                self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def empty_targets(address: str) -> list[tuple[str, str]]:
    """Panels and queries of the dashboard, all jobs and tenants chosen, that give no value."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            values = query(address, target["expr"].replace("$job", ".*").replace("$tenant", ".*"))
            if all(math.isnan(value) for value in values.values()):
                found.append((panel["title"], target["expr"]))
    return found


def alerts(address: str) -> dict[str, dict[str, Any]]:
    text = asked(f"{address}/api/v1/alerts")
    return {alert["labels"]["alertname"]: alert for alert in (json.loads(text)["data"]["alerts"] if text else [])}


def stalled(address: str) -> tuple[str, str] | None:
    """State and summary of the alert; while the first actor starts it may be there for four tasks that are left."""
    alert = alerts(address).get("DladiffNoProgress")
    return (alert["state"], alert["annotations"]["summary"]) if alert else None


def until(holds: Callable[[], bool], why: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {PATIENCE_S} s: {why()}")
        time.sleep(0.5)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, int]]:
    """The dashboard of a head that passes metrics on every second, its folder, and the driver's port for /metrics."""
    prometheus()
    (driver,) = free_ports(1)
    settings = {"RAY_metrics_report_interval_ms": "1000", "DLADIFF_METRICS": f"127.0.0.1:{driver}"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    slowly = {"DLADIFF_FAKE_SECONDS": "4"}  # several reports between two tasks, so that rates see both
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets below it may have 107 characters
    try:
        with ray_token(), started_head(folder, tmp_path / "head.log", slowly) as started:
            yield started.dashboard, Path(folder), driver
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def until_equal(address: str, expression: str, label: str, expected: dict[str, float]) -> None:
    until(
        lambda: query(address, expression, label) == expected,
        lambda: (expression, query(address, expression, label)),
    )


def photos_of_four(folder: Path) -> None:
    for name, photos in {"ann": 2, "bob": 1, "raises": 3, "stalls": 1}.items():
        (folder / name).mkdir(parents=True)
        for i in range(photos):
            pixels = np.full((64, 72, 3), 40 + i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "ann" / "9.png").write_bytes(b"no image")


def kill_driver(dashboard: str, name: str) -> None:
    """SIGKILL, as the kernel does when memory is short."""
    from ray.job_submission import JobSubmissionClient  # the token of the fixture comes before any import of Ray

    info = JobSubmissionClient(dashboard).get_job_info(name)
    os.kill(int(info.driver_info.pid), signal.SIGKILL)


def test_prometheus_sees_the_run_and_tells_when_it_stalls(watched: tuple[str, Path, int], tmp_path: Path) -> None:
    dashboard, folder, port = watched
    photos_of_four(tmp_path / "photos")
    run = {
        "input": str(tmp_path / "photos"),
        "output": str(tmp_path / "out"),
        "protector": "tests.support.fakes:Slow",
    }
    values = {"name": "watched", "run": run | {"max_actors": 1}, "cluster": {"price": 360}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    job = submit.submit(load_job(tmp_path / "job.yaml"), dashboard)
    discovery = folder / "prom_metrics_service_discovery.json"
    until(discovery.exists, lambda: sorted(folder.iterdir()))

    night = Outcome(job="night", tenant="press", exit_code=0, ended=time.time(), identities={"done": 3, "failed": 1})
    page = BESIDE + write_textfile(tmp_path, night).read_text()
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(served_page(page))
        config = shortened(tmp_path / "prometheus", folder, port, node)
        address = stack.enter_context(started_prometheus(config, tmp_path / "prometheus.log"))

        def actors() -> dict[str, float]:
            return query(address, 'sum by (status) (ray_dladiff_tasks_total{job="watched"})', "status")

        def driver() -> dict[str, float]:
            return query(address, '{__name__=~"dladiff_run_(planned|done|failed|left)"}', "__name__")

        until(lambda: actors() == {"done": 2, "failed": 1}, actors)
        until(lambda: driver().get("dladiff_run_left") == 1, driver)
        counts = {
            "identities": 4,
            "planned": 4,
            "done": 2,
            "failed": 1,
            "quarantined": 0,
            "photos": 7,
            "failed_photos": 4,
        }
        wanted: dict[str, tuple[str, dict[str, float]]] = {
            **{f"dladiff_run_{series}": ("job", {"watched": value}) for series, value in counts.items()},
            "sum by (status) (ray_dladiff_photos_total)": ("status", {"protected": 3, "failed": 4}),
            "sum(ray_dladiff_psnr_db_count)": ("", {"": 3}),
            "sum by (encoder) (ray_dladiff_similarity_after_count)": ("encoder", {"fake": 3}),
            "sum by (work) (ray_dladiff_iterations_total)": ("work", {"perturbation": 100}),
            "dladiff_run_cost > 0 < bool 60": ("", {"": 1}),  # a tenth of the currency a second
        }
        for expression, (label, expected) in wanted.items():  # a busy machine may miss a scrape
            until_equal(address, expression, label, expected)
        up = 'up{job=~"ray|dladiff"}'  # a busy machine may miss one scrape of a second
        until(lambda: set(query(address, up, "job").values()) == {1}, lambda: query(address, up, "job"))
        rules = json.loads(asked(f"{address}/api/v1/rules") or "{}")["data"]["groups"]
        assert [rule["lastError"] for group in rules for rule in group["rules"] if rule.get("lastError")] == []

        until(lambda: empty_targets(address) == [], lambda: empty_targets(address))
        firing = ("firing", "watched : no task has ended for long, and 1 are left")
        until(
            lambda: stalled(address) == firing,
            lambda: (alerts(address), query(address, "time() - dladiff_run_last_result_timestamp_seconds")),
        )
        kill_driver(dashboard, job.submission_id)
        until(lambda: not driver(), driver)
        until(lambda: alerts(address).get("DladiffDriverGone", {}).get("state") == "firing", lambda: alerts(address))
        assert stalled(address) == firing
