"""Actor metrics on the node agent of a real Ray: every series of the table, with the values recorded."""

import os
import re
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.telemetry import metrics
from tests.integration.ports import free_ports
from tests.integration.tokens import ray_token

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
PATIENCE_S = 240  # only a failure, or a very busy machine, waits as long


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    import ray

    (port,) = free_ports(1)
    options = {"include_dashboard": False, "object_store_memory": 200_000_000, "log_to_driver": False}
    with ray_token():
        ray.init(address="local", num_cpus=1, _metrics_export_port=port, **options)
        yield port
        ray.shutdown()


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Sums of our series by name and the value of our label: Ray adds labels of its own."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    ours = "\n".join(line for line in text.splitlines() if re.match(r"(# \w+ )?ray_dladiff_", line))
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(ours + "\n"):
        for sample in family.samples:
            label = next((sample.labels[n] for n in ("status", "step", "kind", "device") if n in sample.labels), "")
            bound = sample.labels.get("le", "")
            if bound in ("", "+Inf"):
                found[(sample.name, label)] = found.get((sample.name, label), 0) + sample.value
    return found


def test_actor_series_reach_the_node_agent(exported: int) -> None:
    import ray

    class Worker:
        def work(self) -> int:
            from pipeline.telemetry.metrics import ActorMetrics, RayMeter

            actor = ActorMetrics()
            assert isinstance(actor.meter, RayMeter)
            similarity = [
                {"encoder": "a", "optimised": True, "after": 0.25},
                {"encoder": "b", "optimised": False, "after": -0.5},
            ]
            protected = {"status": "protected", "psnr": 33.0, "ssimulacra2": 85.0, "ssimulacra2_face": 70.0}
            rows = [protected | {"similarity": similarity}, {"status": "failed"}]
            for status in ("done", "done", "failed"):
                actor.finished({"status": status, "rows": rows if status == "done" else []})
            steps = {"zero_shot_layer": {"perturbation": 50}}
            actor.worked({"read": 0.5, "zero_shot_layer": 20.0}, 3e9, "cpu", steps)
            actor.read(1000)
            actor.wrote(0)
            actor.wrote(2000)
            actor.retried()
            return os.getpid()

    worker = ray.remote(Worker).remote()
    ray.get(worker.work.remote())
    wanted = {name for metric in metrics.METRICS if metric.process == "actor" for name in metric.series}
    deadline = time.monotonic() + PATIENCE_S
    found: dict[tuple[str, str], float] = {}
    while time.monotonic() < deadline and not wanted <= {name for name, _ in found}:
        time.sleep(0.2)
        found = scrape(exported)
    assert wanted <= {name for name, _ in found}
    assert found[("ray_dladiff_tasks_total", "done")] == 2
    assert found[("ray_dladiff_tasks_total", "failed")] == 1
    assert found[("ray_dladiff_photos_total", "protected")] == 2
    assert found[("ray_dladiff_step_spent_seconds_total", "zero_shot_layer")] == 20
    assert found[("ray_dladiff_step_seconds_count", "read")] == 1
    assert found[("ray_dladiff_iterations_total", "zero_shot_layer")] == 50
    assert found[("ray_dladiff_similarity_after_count", "optimised")] == 2
    assert found[("ray_dladiff_similarity_after_bucket", "held_out")] == 2
    assert found[("ray_dladiff_psnr_db_count", "")] == 2
    assert found[("ray_dladiff_ssimulacra2_count", "face")] == 2
    assert found[("ray_dladiff_peak_memory_bytes", "cpu")] == 3e9
    assert found[("ray_dladiff_written_bytes_total", "")] == 2000
    assert found[("ray_dladiff_storage_retries_total", "")] == 1
