"""The real Prometheus, with the rules and the scrape jobs of cluster/, beside a real run that is made to stall.

One head, one job, one Prometheus: three people are done with, one never ends. What Prometheus holds is compared with
what was given to the run, and the alert for a stalled run must fire. Waits are cut short in a copy of the files.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.cluster import submit
from pipeline.cluster.job_file import load_job
from tests.integration.heads import started_head
from tests.integration.ports import free_ports
from tests.integration.tokens import ray_token

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]
CLUSTER = Path(__file__).resolve().parents[2] / "cluster" / "prometheus"
PATIENCE_S = 240  # only a failure, or a very busy machine, waits as long
SHORTER: dict[str, dict[str, str | None]] = {
    "prometheus.yml": {"scrape_interval: 15s": "scrape_interval: 1s", "evaluation_interval: 15s": None},
    "rules/recording.yml": {"interval: 15s": "interval: 1s"},
    "rules/alerts.yml": {"longest_task_seconds, 3600)": "longest_task_seconds, 4)", "for: 5m": "for: 1s"},
}
"""File to texts and what stands for them in the copy; a text that is no longer there fails the test."""


def prometheus() -> str:
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("no prometheus on PATH: install Debian's package prometheus")
    return found


def shortened(folder: Path, head: Path, driver: int) -> Path:
    """Copy the configuration: Ray's folder beside it, the driver's port, and waits of a second."""
    shutil.copytree(CLUSTER, folder)
    (folder / "ray").symlink_to(head)
    for name, texts in SHORTER.items():
        text = (folder / name).read_text()
        for old, new in texts.items():
            assert old in text, f"{name} has no {old!r} any more"
            text = text.replace(old, new or old.replace("15s", "1s"))
        (folder / name).write_text(text)
    config = (folder / "prometheus.yml").read_text()
    assert "127.0.0.1:9109" in config
    (folder / "prometheus.yml").write_text(config.replace("127.0.0.1:9109", f"127.0.0.1:{driver}"))
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
    settings = {"RAY_metrics_report_interval_ms": "1000"}
    for name, value in (settings | {"DLADIFF_METRICS": f"127.0.0.1:{driver}"}).items():
        monkeypatch.setenv(name, value)
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets below it may have 107 characters
    try:
        with ray_token(), started_head(folder, tmp_path / "head.log") as started:
            yield started.dashboard, Path(folder), driver
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_prometheus_sees_the_run_and_tells_when_it_stalls(watched: tuple[str, Path, int], tmp_path: Path) -> None:
    dashboard, folder, port = watched
    for name, photos in {"ann": 2, "bob": 1, "raises": 3, "stalls": 1}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(photos):
            pixels = np.full((64, 72, 3), 40 + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "ann" / "9.png").write_bytes(b"no image")
    run = {
        "input": str(tmp_path / "photos"),
        "output": str(tmp_path / "out"),
        "protector": "tests.support.fakes:AddNoise",
    }
    values = {"name": "watched", "run": run | {"max_actors": 1}, "cluster": {"price": 360}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    job = submit.submit(load_job(tmp_path / "job.yaml"), dashboard)
    discovery = folder / "prom_metrics_service_discovery.json"
    until(discovery.exists, lambda: sorted(folder.iterdir()))

    config = shortened(tmp_path / "prometheus", folder, port)
    with started_prometheus(config, tmp_path / "prometheus.log") as address:

        def actors() -> dict[str, float]:
            return query(address, 'sum by (status) (ray_dladiff_tasks_total{job="ray"})', "status")

        def driver() -> dict[str, float]:
            return query(address, '{__name__=~"dladiff_run_(planned|done|failed|left)"}', "__name__")

        until(lambda: actors() == {"done": 2, "failed": 1}, actors)
        until(lambda: driver().get("dladiff_run_left") == 1, driver)
        for series, value in {"identities": 4, "planned": 4, "done": 2, "failed": 1, "quarantined": 0}.items():
            assert query(address, f"dladiff_run_{series}") == {"": value}, series
        assert query(address, "sum by (status) (ray_dladiff_photos_total)", "status") == {"protected": 3, "failed": 4}
        assert query(address, "sum(ray_dladiff_psnr_db_count)") == {"": 3}
        assert query(address, "sum by (encoder) (ray_dladiff_similarity_after_count)", "encoder") == {"fake": 3}
        assert query(address, "sum by (work) (ray_dladiff_iterations_total)", "work") == {"perturbation": 100}
        spent = query(address, "dladiff_run_cost")[""] / 360 * 3600  # a tenth of the currency a second
        assert 0 < spent < 60
        up = 'up{job=~"ray|dladiff"}'  # a busy machine may miss one scrape of a second
        until(lambda: set(query(address, up, "job").values()) == {1}, lambda: query(address, up, "job"))
        rules = json.loads(asked(f"{address}/api/v1/rules") or "{}")["data"]["groups"]
        assert [rule["lastError"] for group in rules for rule in group["rules"] if rule.get("lastError")] == []

        until(
            lambda: stalled(address) == ("firing", "No task has ended for long, and 1 are left"),
            lambda: (alerts(address), query(address, "time() - dladiff_run_last_result_timestamp_seconds")),
        )
        assert submit.stop(dashboard, job.submission_id).status == "STOPPED"
        until(lambda: stalled(address) is None, lambda: alerts(address))
