"""The outcome of a scheduled run: sent to a Pushgateway, or written as a file for the node exporter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from dladiff.errors import StorageError
from pipeline.telemetry import metrics
from pipeline.telemetry.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of one scheduled run."""

    job: str
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
        pushadd_to_gateway(gateway, outcome.job, _registry(outcome, None), {"tenant": outcome.tenant})
    except (OSError, HTTPException, ValueError) as error:  # out of reach, not a gateway, or not an address
        text = " ".join(str(error).split())
        raise StorageError(f"the Pushgateway {gateway} is out of reach ({text}); check its address") from error


def write_textfile(folder: Path, outcome: Outcome) -> Path:
    """Write dladiff_<job>_<tenant>.prom for the node exporter's textfile collector, atomically.

    A failed run keeps the time of the last success. Raises StorageError.
    """
    path = folder / f"dladiff_{outcome.job}_{outcome.tenant}.prom"
    try:
        write_to_textfile(str(path), _registry(outcome, _last_success(path)))
        path.chmod(0o644)  # the exporter is another user; the file holds no names of people
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); give an existing folder") from error
    return path


def _registry(outcome: Outcome, last_success: float | None) -> CollectorRegistry:
    registry, labels = CollectorRegistry(), (outcome.job, outcome.tenant)
    success = outcome.ended if outcome.succeeded else last_success
    if success is not None:
        _gauge(metrics.LAST_SUCCESS, registry).labels(*labels).set(success)
    _gauge(metrics.LAST_END, registry).labels(*labels).set(outcome.ended)
    _gauge(metrics.EXIT_CODE, registry).labels(*labels).set(outcome.exit_code)
    identities = _gauge(metrics.SCHEDULED_IDENTITIES, registry)
    for status, count in outcome.identities.items():
        identities.labels(*labels, status if status in metrics.TASK_STATUSES else metrics.OTHER).set(count)
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
