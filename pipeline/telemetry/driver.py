"""Metrics of the driver: counts, rate and cost of each run of this process, served at /metrics."""

import contextlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily

from dladiff.errors import ConfigError
from pipeline.telemetry import metrics
from pipeline.telemetry.metrics import Metric

log = logging.getLogger(__name__)

RECENT_S = 600.0  # seconds of the recent rate
LINGER_S = 75.0  # longest wait for the scrape of a run's end: a minute is the longest usual interval
INTERRUPTED_S = 20.0  # the same wait after SIGINT or SIGTERM: one scrape of the configuration in cluster/prometheus
LOCAL = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?P<host>.*):)?(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?")


@dataclass
class _Run:
    """Counts of one run."""

    identities: int
    planned: int
    gpus: float
    expected_task_s: float
    started: float
    last_result: float
    ended: float = 0.0
    aborted: bool = False
    counts: dict[str, int] = field(default_factory=lambda: {"done": 0, "failed": 0, "quarantined": 0})
    photos: int = 0
    failed_photos: int = 0
    nodes_out: int = 0
    longest_s: float = 0.0
    billed_s: float = 0.0  # GPU-seconds, or actor-seconds without GPUs; earlier runs of the tenant included
    recent: deque[tuple[float, int]] = field(default_factory=deque)

    def left(self) -> int:
        return self.planned - sum(self.counts.values())

    def within(self, now: float) -> list[tuple[float, int]]:
        while self.recent and self.recent[0][0] <= now - RECENT_S:
            self.recent.popleft()
        return list(self.recent)

    def span(self, now: float) -> float:
        return max(1.0, min(RECENT_S, now - self.started))


class DriverMetrics:
    """Gauges of the last run of each tenant, computed at each scrape, with the labels `job` and `tenant`.

    `tenant` is the one whose run begins next; empty outside of a nightly job.
    """

    def __init__(
        self, *, price: float | None = None, clock: Callable[[], float] = time.time, job: str | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        self.tenant = ""
        self._job = job or metrics.job_name()
        self._price = price
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._lock = threading.RLock()
        self._scraped: threading.Event | None = None
        self._server: Any = None
        self.registry.register(self)

    def begin(self, identities: int, tasks: int, gpus_per_actor: float = 0, *, expected_task_s: float = 0.0) -> None:
        """Start counting a run of `tenant` at zero; only the cost accumulates.

        `expected_task_s` is the estimated time of the longest task, in seconds; 0 if there is no estimate.
        """
        with self._lock:
            before, now = self._runs.get(self.tenant), self._clock()
            self._runs[self.tenant] = _Run(
                identities=identities,
                planned=tasks,
                gpus=gpus_per_actor,
                expected_task_s=expected_task_s,
                started=now,
                last_result=now,
                billed_s=before.billed_s if before else 0.0,
            )

    def advance(self, result: Mapping[str, Any]) -> None:
        """Count one task's result, as the actor returns it."""
        status = "done" if result["status"] == "skipped" else result["status"]
        with self._lock:
            run, now = self._runs[self.tenant], self._clock()
            run.counts[status] += 1
            run.photos += result["photos"]
            run.failed_photos += result["failed_photos"]
            run.billed_s += result["seconds"] * (run.gpus or 1)
            run.recent.append((now, result["photos"] - result["failed_photos"]))
            run.last_result = now
            run.longest_s = max(run.longest_s, result["seconds"])

    def nodes_out(self, count: int) -> None:
        """Note how many nodes of the cluster this run has taken out."""
        with self._lock:
            self._runs[self.tenant].nodes_out = count

    def end(self, *, aborted: bool = False) -> None:
        """Note that the run of `tenant` ended; `aborted` if by an error. Does nothing without a begun run."""
        with self._lock:
            run = self._runs.get(self.tenant)
            if run and not run.ended:
                run.ended, run.aborted = self._clock(), aborted

    def left(self) -> int:
        """Return the number of tasks without a result."""
        return self._runs[self.tenant].left()

    def photos_per_hour(self) -> float:
        """Return photos an hour over the last ten minutes; 0 after ten minutes without a result."""
        return self._value(metrics.RUN_RATE, self._runs[self.tenant])

    def seconds_left(self) -> float:
        """Return the seconds to the end at the recent rate; NaN without recent results."""
        return self._value(metrics.RUN_SECONDS_LEFT, self._runs[self.tenant])

    def cost(self) -> float | None:
        """Return GPU-hours (actor-hours without GPUs) of finished tasks times the price; None without a price."""
        if self._price is None:
            return None
        with self._lock:
            return sum(run.billed_s for run in self._runs.values()) / 3600 * self._price

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing: names are checked by the table's own test."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges of all runs, for one scrape."""
        with self._lock:
            families = [self._family(metric) for metric in metrics.METRICS if metric.process == "driver"]
        yield from (family for family in families if family.samples)
        if self._scraped is not None:
            self._scraped.set()

    def serve(self, address: str) -> int:
        """Serve /metrics at `[HOST:]PORT` (host 127.0.0.1 by default); return the port. Raises ConfigError.

        Of ports `FIRST-LAST` the first free one is taken; if none is free a warning says so, and 0 is returned.
        """
        found = _ADDRESS.fullmatch(address)
        if found is None or int(found["last"] or found["first"]) >= 2**16:
            raise ConfigError([f"metrics: {address!r} is no [HOST:]PORT; give for example 9109"])
        first, fault = int(found["first"]), ""
        for port in range(first, int(found["last"] or first) + 1):
            try:
                self._server, _ = start_http_server(port, found["host"] or LOCAL, self.registry)
            except OSError as error:
                fault = f"metrics: {address} cannot be served ({error.strerror}); choose another port"
                continue
            self._scraped = threading.Event()
            bound: int = self._server.server_port
            return bound
        if not found["last"]:
            raise ConfigError([fault])
        log.warning("%s; the run goes on without metrics", fault)
        return 0

    def linger(self, longest_s: float = LINGER_S) -> None:
        """Wait until the ends of the runs are scraped, at most `longest_s` seconds; not if nothing ever scraped."""
        if self._scraped is not None and self._scraped.is_set() and self._runs:
            self._scraped.clear()
            self._scraped.wait(longest_s)

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _family(self, metric: Metric) -> GaugeMetricFamily:
        family = GaugeMetricFamily(metric.name, f"{metric.help} ({metric.unit})", labels=metric.labels)
        for tenant, run in self._runs.items():
            if metric is not metrics.RUN_COST or self._price is not None:
                family.add_metric([self._job, tenant], self._value(metric, run))
        return family

    def _value(self, metric: Metric, run: _Run) -> float:
        now = self._clock()
        recent, span = run.within(now), run.span(now)
        values: dict[Metric, float] = {
            metrics.RUN_IDENTITIES: run.identities,
            metrics.RUN_PLANNED: run.planned,
            metrics.RUN_DONE: run.counts["done"],
            metrics.RUN_FAILED: run.counts["failed"],
            metrics.RUN_QUARANTINED: run.counts["quarantined"],
            metrics.RUN_LEFT: run.left(),
            metrics.RUN_PHOTOS: run.photos,
            metrics.RUN_FAILED_PHOTOS: run.failed_photos,
            metrics.RUN_NODES_OUT: run.nodes_out,
            metrics.RUN_RATE: sum(photos for _, photos in recent) * 3600 / span,
            metrics.RUN_SECONDS_LEFT: run.left() * span / len(recent) if recent else float("nan") if run.left() else 0,
            metrics.RUN_COST: run.billed_s / 3600 * (self._price or 0.0),
            metrics.RUN_STARTED: run.started,
            metrics.RUN_ENDED: run.ended,
            metrics.RUN_ABORTED: run.aborted,
            metrics.RUN_LAST_RESULT: run.last_result,
            metrics.RUN_LONGEST: run.longest_s,
            metrics.RUN_EXPECTED: run.expected_task_s,
        }
        return float(values[metric])


@contextlib.contextmanager
def served(address: str | None, price: float | None = None) -> Iterator[DriverMetrics]:
    """Yield the metrics of this process, and serve them at `[HOST:]PORT`, if given. Raises ConfigError.

    At the end the run counts as ended, and Prometheus gets `LINGER_S` seconds to see that, after an interruption
    `INTERRUPTED_S`.
    """
    driver = DriverMetrics(price=price)
    try:
        if address is not None:
            driver.serve(address)
        try:
            yield driver
        except Exception:
            driver.end(aborted=True)
            driver.linger()
            raise
        except KeyboardInterrupt:
            driver.end()
            driver.linger(INTERRUPTED_S)
            raise
        driver.end()
        driver.linger()
    finally:
        driver.close()
