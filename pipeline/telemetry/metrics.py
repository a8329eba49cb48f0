"""Metrics: names, units, help texts and labels of actors, driver and scheduled runs in one table.

Label values come from fixed sets, or are the operator's names of jobs, tenants and encoders; never an identity or
photo. Every series has the label `job`: of the driver and of scheduled runs by the table, of actors by `RayMeter`.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

TASK_STATUSES = ("done", "failed", "quarantined", "skipped", "late", "fatal", "storage")
PHOTO_STATUSES = ("protected", "layer1_only", "failed", "skipped")
STEPS = ("read", "detect", "static_surrogate", "finetuning_layer", "zero_shot_layer", "joint_layers", "store")
WORK = ("training", "perturbation")
KINDS = ("optimised", "held_out")
DEVICES = ("cpu", "gpu")
SEEN = {"photo": "ssimulacra2", "face": "ssimulacra2_face"}  # kind to column of the row
MAX_ENCODERS = 16  # encoder names that one actor uses as labels
OTHER = "other"  # label value for anything outside of these sets
NO_JOB = "dladiff"  # label `job` of a run that no job file started
JOB_VARIABLE = "DLADIFF_JOB"  # environment variable with the job's name, of driver and workers


def job_name() -> str:
    """Return the name of the job that this process belongs to."""
    return os.environ.get(JOB_VARIABLE) or NO_JOB


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric; `name` is its name here, `series` its names in Prometheus."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    process: Literal["actor", "driver", "scheduled"]
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """Names for queries. Ray prefixes actor metrics with `ray_`; its `_sum` adds bucket centres, so not `_sum`."""
        name = f"ray_{self.name}" if self.process == "actor" else self.name
        return (f"{name}_bucket", f"{name}_count") if self.kind == "histogram" else (name,)


_actor: dict[str, Any] = {"process": "actor"}
_driver: dict[str, Any] = {"process": "driver", "kind": "gauge", "labels": ("job", "tenant")}
_scheduled: dict[str, Any] = {"process": "scheduled", "kind": "gauge"}

TASKS = Metric(
    name="dladiff_tasks_total", kind="counter", unit="tasks", labels=("status",), **_actor,
    help="Tasks (identities, or parts of one) that ended, by status",
)  # fmt: skip
PHOTOS = Metric(
    name="dladiff_photos_total", kind="counter", unit="photos", labels=("status",), **_actor,
    help="Photos of tasks that ended, by status",
)  # fmt: skip
STEP_SECONDS = Metric(
    name="dladiff_step_seconds", kind="histogram", unit="seconds", labels=("step",), **_actor,
    help="Time of one step of one task", buckets=(0.1, 0.5, 1, 5, 15, 60, 180, 600, 1800, 3600, 7200, 21600),
)  # fmt: skip
STEP_SPENT = Metric(
    name="dladiff_step_spent_seconds_total", kind="counter", unit="seconds", labels=("step",), **_actor,
    help="Time spent in each step, all tasks together: exact, where the histogram gives quantiles",
)  # fmt: skip
ITERATIONS = Metric(
    name="dladiff_iterations_total", kind="counter", unit="steps", labels=("step", "work"), **_actor,
    help="Training steps of a surrogate; perturbation steps of one square or face; over the seconds spent a rate",
)  # fmt: skip
PEAK_MEMORY = Metric(
    name="dladiff_peak_memory_bytes", kind="gauge", unit="bytes", labels=("device",), **_actor,
    help="Peak memory of an actor's last task",
)  # fmt: skip
SIMILARITY = Metric(
    name="dladiff_similarity_after", kind="histogram", unit="cosine", labels=("kind", "encoder"), **_actor,
    help="Cosine to the original after protection, below 0 counted as 0, by encoder and its kind",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)  # fmt: skip
PSNR = Metric(
    name="dladiff_psnr_db", kind="histogram", unit="decibels", **_actor,
    help="PSNR of a protected photo", buckets=(24, 26, 28, 30, 32, 34, 36, 38, 40, 45, 50),
)  # fmt: skip
SSIMULACRA2 = Metric(
    name="dladiff_ssimulacra2", kind="histogram", unit="score", labels=("kind",), **_actor,
    help="SSIMULACRA2 of a protected photo and of its lowest face, below 0 counted as 0: 90 is not seen side by side",
    buckets=(10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 95, 100),
)  # fmt: skip
RETRIES = Metric(
    name="dladiff_storage_retries_total", kind="counter", unit="tries", **_actor,
    help="Storage operations tried again because storage was overloaded or out of reach",
)  # fmt: skip
READ_BYTES = Metric(
    name="dladiff_read_bytes_total", kind="counter", unit="bytes", help="Bytes of photos read", **_actor
)
WRITTEN_BYTES = Metric(
    name="dladiff_written_bytes_total", kind="counter", unit="bytes", help="Bytes of protected photos written", **_actor
)

RUN_IDENTITIES = Metric(name="dladiff_run_identities", unit="identities", help="Identities in the plan", **_driver)
RUN_PLANNED = Metric(name="dladiff_run_planned", unit="tasks", help="Tasks that this run has to do", **_driver)
RUN_DONE = Metric(name="dladiff_run_done", unit="tasks", help="Tasks of this run that are done or skipped", **_driver)
RUN_FAILED = Metric(name="dladiff_run_failed", unit="tasks", help="Tasks of this run that failed", **_driver)
RUN_QUARANTINED = Metric(
    name="dladiff_run_quarantined", unit="tasks", help="Tasks of this run that were put in quarantine", **_driver
)
RUN_LEFT = Metric(name="dladiff_run_left", unit="tasks", help="Tasks of this run without a result", **_driver)
RUN_PHOTOS = Metric(name="dladiff_run_photos", unit="photos", help="Photos of tasks of this run that ended", **_driver)
RUN_FAILED_PHOTOS = Metric(
    name="dladiff_run_failed_photos", unit="photos", help="Photos that failed, alone or with their task", **_driver
)
RUN_NODES_OUT = Metric(
    name="dladiff_run_nodes_out", unit="nodes", help="Nodes taken out because their worker cannot work", **_driver
)
RUN_RATE = Metric(
    name="dladiff_run_photos_per_hour", unit="photos/hour", help="Photos an hour over the last ten minutes", **_driver
)
RUN_SECONDS_LEFT = Metric(
    name="dladiff_run_left_seconds", unit="seconds", help="Time to the end at the recent rate; NaN if none", **_driver
)
RUN_COST = Metric(
    name="dladiff_run_cost", unit="currency", help="Actor time so far at the price given; absent without", **_driver
)
RUN_STARTED = Metric(
    name="dladiff_run_started_timestamp_seconds", unit="seconds", help="When this run began", **_driver
)
RUN_ENDED = Metric(
    name="dladiff_run_ended_timestamp_seconds", unit="seconds", help="When this run ended; 0 until then", **_driver
)
RUN_ABORTED = Metric(
    name="dladiff_run_aborted", unit="runs", help="1 if an error ended this run before all tasks were done", **_driver
)
RUN_LAST_RESULT = Metric(
    name="dladiff_run_last_result_timestamp_seconds", unit="seconds", help="When a task last ended", **_driver
)
RUN_LONGEST = Metric(
    name="dladiff_run_longest_task_seconds", unit="seconds", help="Longest task of this run so far", **_driver
)
RUN_EXPECTED = Metric(
    name="dladiff_run_expected_task_seconds", unit="seconds", **_driver,
    help="Estimated time of the longest task: photos a task times seconds a photo; 0 without an estimate",
)  # fmt: skip

LAST_SUCCESS = Metric(
    name="dladiff_scheduled_last_success_timestamp_seconds", unit="seconds", labels=("job", "tenant"), **_scheduled,
    help="When a scheduled run last ended with exit code 0 or 1: everything that can be done is done",
)  # fmt: skip
LAST_END = Metric(
    name="dladiff_scheduled_last_end_timestamp_seconds", unit="seconds", labels=("job", "tenant"), **_scheduled,
    help="When a scheduled run last ended, however",
)  # fmt: skip
EXIT_CODE = Metric(
    name="dladiff_scheduled_exit_code", unit="code", labels=("job", "tenant"), **_scheduled,
    help="Exit code of the last scheduled run; -1: its window ended before its turn",
)  # fmt: skip
SCHEDULED_IDENTITIES = Metric(
    name="dladiff_scheduled_identities", unit="identities", labels=("job", "tenant", "status"), **_scheduled,
    help="Identities of the last scheduled run, by status",
)  # fmt: skip

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All metrics."""
SERIES = frozenset(name for metric in METRICS for name in metric.series)
"""All names that rules and dashboards may use."""


class Meter(Protocol):
    """Records actor metrics: adds to a counter, sets a gauge, adds a value to a histogram."""

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        """Record one value."""
        ...


class Tally:
    """Keeps the values in this process, for actors outside of Ray and tests."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)
        self._lock = threading.Lock()

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        """Record one value; counters and gauges keep one number."""
        with self._lock:
            held = self.values[(metric.name, tuple(sorted(labels.items())))]
            if metric.kind == "counter":
                held[:] = [sum(held) + value]
            elif metric.kind == "gauge":
                held[:] = [value]
            else:
                held.append(value)

    def of(self, metric: Metric, **labels: str) -> list[float]:
        """Return the values recorded under these labels."""
        return list(self.values.get((metric.name, tuple(sorted(labels.items()))), []))


class RayMeter:
    """Sends the values to Ray's node agent, which serves them as `ray_<name>`, with the label `job`."""

    def __init__(self) -> None:
        from ray.util import metrics

        self._made: dict[str, Any] = {}
        for metric in METRICS:
            if metric.process != "actor":
                continue
            tags = (*metric.labels, "job")
            options: dict[str, Any] = {"description": f"{metric.help} ({metric.unit})", "tag_keys": tags}
            if metric.kind == "histogram":
                self._made[metric.name] = metrics.Histogram(metric.name, boundaries=list(metric.buckets), **options)
            else:
                kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
                self._made[metric.name] = kind(metric.name, **options)
            self._made[metric.name].set_default_tags({"job": job_name()})

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        """Record one value."""
        made = self._made[metric.name]
        if metric.kind == "counter" and value > 0:  # Ray refuses an increment of 0
            made.inc(value, tags=labels)
        elif metric.kind == "gauge":
            made.set(value, tags=labels)
        elif metric.kind == "histogram":
            made.observe(value, tags=labels)


class ActorMetrics:
    """Metrics of one actor's tasks."""

    def __init__(self, meter: Meter | None = None) -> None:
        self.meter = meter or (RayMeter() if _in_ray() else Tally())
        self._encoders: tuple[str, ...] = ()

    def finished(self, result: Mapping[str, Any]) -> None:
        """Count a task and its photos from the result that the driver gets."""
        self.meter.record(TASKS, 1, status=_of(TASK_STATUSES, result["status"]))
        for row in result.get("rows", ()):
            self.meter.record(PHOTOS, 1, status=_of(PHOTO_STATUSES, row["status"]))
            if row.get("psnr") is not None:
                self.meter.record(PSNR, row["psnr"])
            for kind, name in SEEN.items():
                if row.get(name) is not None:
                    self.meter.record(SSIMULACRA2, max(0.0, row[name]), kind=kind)
            for pair in row.get("similarity") or ():
                if pair["after"] is not None:
                    labels = {"kind": KINDS[not pair["optimised"]], "encoder": self._encoder(pair["encoder"])}
                    self.meter.record(SIMILARITY, max(0.0, pair["after"]), **labels)

    def worked(
        self,
        seconds: Mapping[str, float],
        peak_memory_bytes: float,
        device: str,
        steps: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Record the seconds and iterations of each step and the peak memory of one task."""
        for step, counts in (steps or {}).items():
            for work, count in counts.items():
                self.meter.record(ITERATIONS, count, step=_of(STEPS, step), work=_of(WORK, work))
        for step, spent in seconds.items():
            self.meter.record(STEP_SECONDS, spent, step=_of(STEPS, step))
            self.meter.record(STEP_SPENT, spent, step=_of(STEPS, step))
        self.meter.record(PEAK_MEMORY, peak_memory_bytes, device=DEVICES[device != "cpu"])

    def _encoder(self, name: str) -> str:
        """Return the encoder's name, or OTHER after the first MAX_ENCODERS names of this actor."""
        if name not in self._encoders and len(self._encoders) < MAX_ENCODERS:
            self._encoders += (name,)
        return _of(self._encoders, name)

    def read(self, size: int) -> None:
        """Count bytes read."""
        self.meter.record(READ_BYTES, size)

    def wrote(self, size: int) -> None:
        """Count bytes written."""
        self.meter.record(WRITTEN_BYTES, size)

    def retried(self) -> None:
        """Count one more try of a storage operation."""
        self.meter.record(RETRIES, 1)


def _of(known: tuple[str, ...], value: str) -> str:
    return value if value in known else OTHER


def _in_ray() -> bool:
    import sys

    ray = sys.modules.get("ray")  # an actor has imported it; importing it here would slow unit tests
    return bool(ray is not None and ray.is_initialized())
