"""Metrics of the driver: /metrics while it runs, and the outcome of a scheduled run."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway, start_http_server, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from dladiff.errors import ConfigError, StorageError
from pipeline.telemetry import metrics
from pipeline.telemetry.metrics import Metric

RECENT_S = 600.0  # seconds of the recent rate
LOCAL = "127.0.0.1"


class DriverMetrics:
    """Counts of one run and its rate over the last ten minutes; gauges are computed at each scrape."""

    def __init__(
        self,
        *,
        price: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = CollectorRegistry()
        self.counts = {"done": 0, "failed": 0, "quarantined": 0}
        self.planned = self.photos = 0
        self._price = price
        self._clock = clock
        self._billed_s = 0.0  # GPU-seconds, or actor-seconds without GPUs
        self._gpus = 0.0
        self._started = clock()
        self._recent: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()
        self._server: Any = None
        self._identities = self._gauge(metrics.RUN_IDENTITIES)
        self._last = self._gauge(metrics.RUN_LAST_RESULT)
        self._longest = self._gauge(metrics.RUN_LONGEST)
        self._longest_s = 0.0
        computed: dict[Metric, Callable[[], float]] = {
            metrics.RUN_PLANNED: lambda: self.planned,
            metrics.RUN_DONE: lambda: self.counts["done"],
            metrics.RUN_FAILED: lambda: self.counts["failed"],
            metrics.RUN_QUARANTINED: lambda: self.counts["quarantined"],
            metrics.RUN_LEFT: self.left,
            metrics.RUN_RATE: self.photos_per_hour,
            metrics.RUN_SECONDS_LEFT: self.seconds_left,
        }
        if self._price is not None:
            computed[metrics.RUN_COST] = lambda: self.cost() or 0.0
        for metric, function in computed.items():
            self._gauge(metric).set_function(function)

    def begin(self, identities: int, tasks: int, gpus_per_actor: float = 0) -> None:
        """Start counting a run. Later runs of the same process start at zero; only the cost accumulates."""
        with self._lock:
            self.counts = dict.fromkeys(self.counts, 0)
            self.planned, self.photos, self._started = tasks, 0, self._clock()
            self._recent.clear()
        self._gpus, self._longest_s = gpus_per_actor, 0.0
        self._longest.set(0)
        self._identities.set(identities)
        self._last.set(self._started)

    def advance(self, result: Mapping[str, Any]) -> None:
        """Count one task's result, as the actor returns it."""
        status = "done" if result["status"] == "skipped" else result["status"]
        photos = result["photos"] - result["failed_photos"]
        with self._lock:
            self.counts[status] += 1
            self.photos += photos
            self._billed_s += result["seconds"] * (self._gpus or 1)
            self._recent.append((self._clock(), photos))
        self._last.set(self._clock())
        self._longest_s = max(self._longest_s, result["seconds"])
        self._longest.set(self._longest_s)

    def left(self) -> int:
        """Return the number of tasks without a result."""
        return self.planned - sum(self.counts.values())

    def photos_per_hour(self) -> float:
        """Return photos an hour over the last ten minutes; 0 after ten minutes without a result."""
        return sum(photos for _, photos in self._within()) * 3600 / self._span()

    def seconds_left(self) -> float:
        """Return the seconds to the end at the recent rate; NaN without recent results."""
        left, recent = self.left(), len(self._within())
        if left == 0:
            return 0.0
        return left * self._span() / recent if recent else float("nan")

    def cost(self) -> float | None:
        """Return GPU-hours (actor-hours without GPUs) of finished tasks times the price; None without a price."""
        return None if self._price is None else self._billed_s / 3600 * self._price

    def serve(self, address: str) -> int:
        """Serve /metrics at `[HOST:]PORT` (host 127.0.0.1 by default); return the port. Raises ConfigError."""
        host, _, port = address.rpartition(":")
        try:
            self._server, _ = start_http_server(int(port), host or LOCAL, self.registry)
        except (ValueError, OverflowError) as error:
            raise ConfigError([f"metrics: {address!r} is no [HOST:]PORT; give for example 9109"]) from error
        except OSError as error:
            raise ConfigError(
                [f"metrics: {address} cannot be served ({error.strerror}); choose another port"]
            ) from error
        bound: int = self._server.server_port
        return bound

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _gauge(self, metric: Metric) -> Gauge:
        return _gauge(metric, self.registry)

    def _within(self) -> list[tuple[float, int]]:
        with self._lock:
            while self._recent and self._recent[0][0] <= self._clock() - RECENT_S:
                self._recent.popleft()
            return list(self._recent)

    def _span(self) -> float:
        return max(1.0, min(RECENT_S, self._clock() - self._started))


@contextlib.contextmanager
def served(address: str | None, price: float | None = None) -> Iterator[DriverMetrics]:
    """Yield the metrics of this process, and serve them at `[HOST:]PORT`, if given. Raises ConfigError."""
    driver = DriverMetrics(price=price)
    try:
        if address is not None:
            driver.serve(address)
        yield driver
    finally:
        driver.close()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of one scheduled run."""

    tenant: str
    exit_code: int
    ended: float
    """Seconds since the epoch."""
    identities: Mapping[str, int] = field(default_factory=dict)
    """Number of identities by status."""

    @property
    def succeeded(self) -> bool:
        """Whether the run ended with exit code 0 or 1; failures of single identities do not count."""
        return self.exit_code in (0, 1)


def push(gateway: str, outcome: Outcome) -> None:
    """Send the outcome to a Pushgateway; a failed run keeps the time of the last success. Raises StorageError."""
    try:
        pushadd_to_gateway(gateway, "dladiff", _registry(outcome, None), {"tenant": outcome.tenant})
    except (OSError, HTTPException, ValueError) as error:  # out of reach, not a gateway, or not an address
        text = " ".join(str(error).split())
        raise StorageError(f"the Pushgateway {gateway} is out of reach ({text}); check its address") from error


def write_textfile(folder: Path, outcome: Outcome) -> Path:
    """Write dladiff_<tenant>.prom for the node exporter's textfile collector, atomically.

    A failed run keeps the time of the last success. Raises StorageError.
    """
    path = folder / f"dladiff_{outcome.tenant}.prom"
    try:
        write_to_textfile(str(path), _registry(outcome, _last_success(path)))
        path.chmod(0o644)  # the exporter is another user; the file holds no names of people
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); give an existing folder") from error
    return path


def _registry(outcome: Outcome, last_success: float | None) -> CollectorRegistry:
    registry, tenant = CollectorRegistry(), outcome.tenant
    success = outcome.ended if outcome.succeeded else last_success
    if success is not None:
        _gauge(metrics.LAST_SUCCESS, registry).labels(tenant).set(success)
    _gauge(metrics.LAST_END, registry).labels(tenant).set(outcome.ended)
    _gauge(metrics.EXIT_CODE, registry).labels(tenant).set(outcome.exit_code)
    identities = _gauge(metrics.SCHEDULED_IDENTITIES, registry)
    for status, count in outcome.identities.items():
        identities.labels(tenant, status if status in metrics.TASK_STATUSES else metrics.OTHER).set(count)
    return registry


def _last_success(path: Path) -> float | None:
    if not path.exists():
        return None
    try:
        families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except ValueError:
        return None  # damaged: it is written again
    return next((s.value for f in families for s in f.samples if s.name == metrics.LAST_SUCCESS.name), None)


def _gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    return Gauge(metric.name, f"{metric.help} ({metric.unit})", metric.labels, registry=registry)
