"""Actor, driver and scheduled metrics: numbers counted by hand, and names that the table holds."""

import io
import math
import urllib.request
from threading import Thread

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from dladiff.errors import ConfigError, StorageError
from pipeline.run.progress import Progress
from pipeline.telemetry import metrics
from pipeline.telemetry.driver import DriverMetrics, served
from pipeline.telemetry.metrics import ActorMetrics, Tally


def row(status: str, psnr: float | None, *after: tuple[bool, float | None]) -> dict[str, object]:
    similarity = [{"encoder": "a" if o else "b", "optimised": o, "before": 1.0, "after": a} for o, a in after]
    return {"source_uri": "secret/name.jpg", "status": status, "reason": "", "psnr": psnr, "similarity": similarity}


RESULT = {
    "identity": "secret",
    "status": "done",
    "reason": "",
    "photos": 3,
    "failed_photos": 1,
    "seconds": 36.0,
    "rows": [
        row("protected", 33.5, (True, 0.1), (False, 0.6)) | {"ssimulacra2": 88.5, "ssimulacra2_face": -3.0},
        row("layer1_only", 34.0, (True, -0.2), (True, None)) | {"ssimulacra2": 70.0, "ssimulacra2_face": None},
        row("failed", None),
    ],
}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_actor_counts_by_status_and_kind() -> None:
    tally = Tally()
    actor = ActorMetrics(tally)
    actor.finished(RESULT)
    actor.finished(RESULT | {"status": "failed", "rows": []})
    actor.finished({"status": "storage"})
    assert tally.of(metrics.TASKS, status="done") == [1]
    assert tally.of(metrics.TASKS, status="failed") == [1]
    assert tally.of(metrics.TASKS, status="storage") == [1]
    assert [tally.of(metrics.PHOTOS, status=s) for s in metrics.PHOTO_STATUSES] == [[1], [1], [1], []]
    assert tally.of(metrics.PSNR) == [33.5, 34.0]
    assert tally.of(metrics.SSIMULACRA2, kind="photo") == [88.5, 70.0]
    assert tally.of(metrics.SSIMULACRA2, kind="face") == [0.0]
    assert tally.of(metrics.SIMILARITY, kind="optimised", encoder="a") == [0.1, 0.0]
    assert tally.of(metrics.SIMILARITY, kind="held_out", encoder="b") == [0.6]


def test_actor_counts_work_and_bytes() -> None:
    actor = ActorMetrics()  # outside of Ray: the same class over a tally
    assert isinstance(actor.meter, Tally)
    steps = {"finetuning_layer": {"training": 21, "perturbation": 144}, "zero_shot_layer": {"perturbation": 50}}
    actor.worked({"read": 0.5, "zero_shot_layer": 12.0, "new_step": 1.0}, 4e9, "NVIDIA L4", steps)
    actor.worked({"read": 1.5}, 3e9, "cpu", {"zero_shot_layer": {"perturbation": 25, "odd": 1}})
    for size in (10, 20):
        actor.read(size)
        actor.wrote(2 * size)
    actor.retried()
    tally = actor.meter
    assert tally.of(metrics.STEP_SECONDS, step="read") == [0.5, 1.5]
    assert tally.of(metrics.STEP_SECONDS, step="other") == [1.0]
    assert tally.of(metrics.STEP_SPENT, step="read") == [2.0]
    assert tally.of(metrics.ITERATIONS, step="finetuning_layer", work="training") == [21]
    assert tally.of(metrics.ITERATIONS, step="finetuning_layer", work="perturbation") == [144]
    assert tally.of(metrics.ITERATIONS, step="zero_shot_layer", work="perturbation") == [75]
    assert tally.of(metrics.ITERATIONS, step="zero_shot_layer", work="other") == [1]
    assert tally.of(metrics.PEAK_MEMORY, device="gpu") == [4e9]
    assert tally.of(metrics.READ_BYTES) == [30]
    assert tally.of(metrics.WRITTEN_BYTES) == [60]
    assert tally.of(metrics.RETRIES) == [1]


def test_labels_are_bounded_whatever_the_rows_say() -> None:
    actor = ActorMetrics(tally := Tally())
    actor.finished(RESULT | {"status": "../../etc", "rows": [row("secret", 30.0, (True, 0.3))]})
    allowed = {*metrics.TASK_STATUSES, *metrics.PHOTO_STATUSES, *metrics.STEPS, *metrics.KINDS, "other", "cpu", "gpu"}
    assert {value for _, labels in tally.values for _, value in labels} <= allowed | {"a"}
    known = {"status", "step", "work", "kind", "encoder", "device", "tenant", "job"}
    assert {label for m in metrics.METRICS for label in m.labels} == known


def test_more_encoders_than_a_configuration_has_are_one_label() -> None:
    actor = ActorMetrics(tally := Tally())
    for name in [*range(40), 0]:
        similarity = [{"encoder": f"e{name}", "optimised": True, "before": 1.0, "after": 0.5}]
        actor.finished(RESULT | {"rows": [{"status": "protected", "psnr": None, "similarity": similarity}]})
    assert tally.of(metrics.SIMILARITY, kind="optimised", encoder="e0") == [0.5, 0.5]
    assert len(tally.of(metrics.SIMILARITY, kind="optimised", encoder="other")) == 40 - metrics.MAX_ENCODERS


def test_table_is_named_as_prometheus_asks() -> None:
    names = [m.name for m in metrics.METRICS]
    assert len(set(names)) == len(names)
    for metric in metrics.METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert all(bucket > 0 for bucket in metric.buckets)  # Ray refuses others
        assert list(metric.buckets) == sorted(metric.buckets)
        for unit in ("seconds", "bytes"):
            assert (unit in metric.name) == (metric.unit == unit)
        if metric.process != "actor":
            assert metric.labels[:2] == ("job", "tenant")
    assert {"ray_dladiff_step_seconds_bucket", "ray_dladiff_photos_total", "dladiff_run_left"} <= metrics.SERIES


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    return {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}


def test_driver_serves_counts_rate_and_cost() -> None:
    clock = Clock()
    driver = DriverMetrics(price=3.0, clock=clock)
    port = driver.serve("0")
    try:
        driver.begin(identities=12, tasks=10, gpus_per_actor=0.5, expected_task_s=9600.0)
        clock.now += 3000
        for status in ("failed", "skipped", "quarantined", "done"):
            driver.advance(RESULT | {"status": status, "seconds": 600.0})
        clock.now += 300
        found = scrape(port)
        driver.begin(identities=12, tasks=4)
        clock.now += 601
        stalled = scrape(port)
    finally:
        driver.close()
    assert (found["dladiff_run_identities"], found["dladiff_run_planned"]) == (12, 10)
    ends = ("done", "failed", "quarantined", "left", "photos", "failed_photos")
    assert [found[f"dladiff_run_{name}"] for name in ends] == [2, 1, 1, 6, 12, 4]
    assert found["dladiff_run_photos_per_hour"] == 8 * 6  # 8 photos in the last ten minutes
    assert found["dladiff_run_left_seconds"] == 6 * 600 / 4
    assert found["dladiff_run_cost"] == 2400 / 3600 * 0.5 * 3
    assert found["dladiff_run_last_result_timestamp_seconds"] == 1_003_000
    assert found["dladiff_run_longest_task_seconds"] == 600
    assert (found["dladiff_run_expected_task_seconds"], stalled["dladiff_run_expected_task_seconds"]) == (9600, 0)
    assert (found["dladiff_run_started_timestamp_seconds"], found["dladiff_run_ended_timestamp_seconds"]) == (1e6, 0)
    assert stalled["dladiff_run_photos_per_hour"] == 0
    assert (stalled["dladiff_run_left"], stalled["dladiff_run_done"]) == (4, 0)  # another run of the same process
    assert stalled["dladiff_run_cost"] == found["dladiff_run_cost"]
    assert set(found) == {m.name for m in metrics.METRICS if m.process == "driver"}


def labelled(driver: DriverMetrics, name: str) -> dict[tuple[str, str], float]:
    return {
        (s.labels["job"], s.labels["tenant"]): s.value for f in driver.registry.collect() for s in f.samples
        if s.name == name
    }  # fmt: skip


def test_tenants_of_one_process_keep_their_own_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLADIFF_JOB", "night")
    driver, clock = DriverMetrics(price=1.0, clock=(clock := Clock())), clock
    assert list(driver.registry.collect()) == []  # a run that was not begun has no series
    driver.end()
    for tenant, status in (("press", "failed"), ("alumni", "done")):
        driver.tenant = tenant
        driver.begin(identities=1, tasks=1)
        driver.advance(RESULT | {"status": status, "seconds": 1800.0})
        clock.now += 60
        driver.end(aborted=tenant == "press")
    driver.end(aborted=True)  # the first end counts
    press, alumni = ("night", "press"), ("night", "alumni")
    assert labelled(driver, "dladiff_run_failed") == {press: 1, alumni: 0}
    assert labelled(driver, "dladiff_run_failed_photos") == {press: 1, alumni: 1}
    assert labelled(driver, "dladiff_run_ended_timestamp_seconds") == {press: 1_000_060, alumni: 1_000_120}
    assert labelled(driver, "dladiff_run_aborted") == {press: 1, alumni: 0}
    assert labelled(driver, "dladiff_run_cost") == {press: 0.5, alumni: 0.5}
    assert driver.cost() == 1.0


def test_end_of_a_run_waits_for_its_scrape_and_no_longer() -> None:
    seen: list[dict[str, float]] = []
    with served("127.0.0.1:0") as driver:
        port = driver._server.server_port
        driver.begin(identities=1, tasks=1)
        scrape(port)
        scraper = Thread(target=lambda: seen.append(scrape(port)))
        real = driver.linger

        def linger(longest_s: float = 60) -> None:
            scraper.start()
            real(longest_s)

        driver.linger = linger  # type: ignore[method-assign]
    scraper.join(10)
    assert seen[0]["dladiff_run_ended_timestamp_seconds"] > 0
    with served("127.0.0.1:0") as driver:
        driver.begin(identities=1, tasks=1)
        driver.linger(3600)  # nothing scraped before: no wait


def test_an_error_aborts_the_run_and_an_interruption_ends_it() -> None:
    for error, aborted in ((StorageError("x"), 1), (KeyboardInterrupt(), 0)):
        with pytest.raises(type(error)), served(None) as driver:
            driver.begin(identities=1, tasks=1)
            raise error
        assert list(labelled(driver, "dladiff_run_aborted").values()) == [aborted]
        assert all(labelled(driver, "dladiff_run_ended_timestamp_seconds").values())


def test_driver_without_price_or_pace_claims_neither() -> None:
    driver = DriverMetrics()
    driver.begin(identities=1, tasks=1)
    assert math.isnan(driver.seconds_left())
    assert "dladiff_run_cost" not in {f.name for f in driver.registry.collect()}


def test_progress_line_tells_the_cost_where_there_is_a_price() -> None:
    driver, lines = DriverMetrics(price=3.0), io.StringIO()
    driver.begin(identities=2, tasks=2, gpus_per_actor=0.5)
    for metered, words in ((driver, ", cost 1.50"), (DriverMetrics(), "")):
        with Progress(Console(file=lines, width=200), 2, metered.cost) as progress:
            driver.advance(RESULT | {"seconds": 3600.0})
            progress.advance(RESULT)
        assert lines.getvalue().strip().endswith(f"left{words}")
        lines.truncate(0)


def test_bad_or_taken_address_says_what_to_do() -> None:
    first, second = DriverMetrics(), DriverMetrics()
    port = first.serve("127.0.0.1:0")
    try:
        with pytest.raises(ConfigError, match="choose another port"):
            second.serve(f"127.0.0.1:{port}")
        for address in ("127.0.0.1:http", "99999", "1-99999", "-1"):
            with pytest.raises(ConfigError, match=r"HOST:\]PORT"):
                second.serve(address)
    finally:
        first.close()


def test_of_several_ports_the_first_free_one_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    first, second = DriverMetrics(), DriverMetrics()
    port = first.serve("0")
    try:
        assert second.serve(f"{port}-{port}") == 0  # a job does not fail for its metrics
        assert "goes on without metrics" in caplog.text
        assert port < second.serve(f"{port}-{port + 40}") <= port + 40
    finally:
        first.close()
        second.close()
