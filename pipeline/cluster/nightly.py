"""The nightly run: tenants one after another in a time window; a failed tenant does not stop the others."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from dladiff.errors import ConfigError, DladiffError, StorageError
from dladiff.settings.merge import nearest
from pipeline.cluster.job_file import Job, Tenant
from pipeline.config import RunConfig
from pipeline.retention.retain import retain
from pipeline.run.driver import Summary, protect
from pipeline.storage.keys import redacted, shown
from pipeline.telemetry.driver import DriverMetrics
from pipeline.telemetry.outcome import Outcome, push, write_textfile

COUNTS = ("planned", "done", "failed", "quarantined", "skipped")
SHOWN = (*COUNTS, "deleted")
NO_TURN = -1  # exit code of a tenant that was not started
STATES = {0: "all protected", 1: "some failed", 2: "wrong settings", 3: "out of reach", NO_TURN: "no turn"}


class Protect(Protocol):
    """A function that runs one tenant."""

    def __call__(self, config: RunConfig, *, deadline: datetime | None) -> Summary:
        """Protect what is new; no task is started after the deadline."""
        ...


Clock = Callable[[], datetime]


@dataclass(frozen=True, kw_only=True)
class TenantOutcome:
    """How one tenant's run ended."""

    tenant: str
    exit_code: int
    """0 all protected, 1 some failed, 2 wrong settings, 3 storage or cluster out of reach, -1 not started."""
    reason: str
    started: str | None
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    """planned, done, failed, quarantined, skipped, in identities; lost_photos; deleted, deleted_photos by retention."""
    traceback: str = ""
    """Traceback of a bug of this program."""


@dataclass(frozen=True, kw_only=True)
class NightlySummary:
    """All tenants, in order."""

    job: str
    started: str
    ended: str
    tenants: list[TenantOutcome]
    notes: list[str]
    """Problems outside of the tenants' runs, such as a Pushgateway out of reach."""

    @property
    def exit_code(self) -> int:
        """The highest exit code; a tenant that was not started counts as 1."""
        return max((1 if t.exit_code == NO_TURN else t.exit_code for t in self.tenants), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"exit_code": self.exit_code}

    def text(self) -> str:
        """Return the summary as a mail: subject line, one line a tenant, reasons."""
        good = sum(t.exit_code == 0 for t in self.tenants)
        lines = [f"dladiff {self.job}: {good} of {len(self.tenants)} tenants all protected, exit code {self.exit_code}"]
        lines += ["", f"from {self.started} to {self.ended}", ""]
        width = max((len(t.tenant) for t in self.tenants), default=0)
        for tenant in self.tenants:
            counts = ", ".join(f"{name} {tenant.counts[name]}" for name in SHOWN if name in tenant.counts)
            minutes = f"{tenant.seconds / 60:.0f} min" if tenant.started else ""
            parts = [tenant.tenant.ljust(width), STATES[tenant.exit_code], counts, minutes]
            lines.append("  ".join(part for part in parts if part))
        reasons = [f"{t.tenant}: {t.reason}" for t in self.tenants if t.reason] + self.notes
        return "\n".join([*lines, *([""] if reasons else []), *reasons]) + "\n"


def run_nightly(
    job: Job,
    *,
    only: Sequence[str] = (),
    ignore_window: bool = False,
    pushgateway: str | None = None,
    textfiles: Path | None = None,
    metrics: DriverMetrics | None = None,
    protect: Protect = protect,
    now: Clock = lambda: datetime.now(UTC),
) -> NightlySummary:
    """Run the tenants, or `only` those named; neither tenants nor tasks are started after the window's end.

    A tenant's retention is carried out after its run. `ignore_window` runs at any hour. Outcomes are sent to a
    Pushgateway or written to files for the node exporter, if given. `metrics`, if given, are those that `protect`
    updates; each tenant's run gets its name there. Raises ConfigError for a job without tenants or an unknown tenant;
    other exceptions become the tenant's outcome.
    """
    tenants, schedule = _chosen(job, only), job.schedule
    assert schedule is not None
    started, outcomes, notes = now(), list[TenantOutcome](), list[str]()
    first = started.toordinal() % len(tenants)  # rotates each night, so that no tenant is always last
    for tenant in tenants[first:] + tenants[:first]:
        if ignore_window or schedule.is_open(now()):
            until = None if ignore_window else schedule.closes(now())
            if metrics is not None:
                metrics.tenant = tenant.name
            outcome = _run(tenant, protect, now, until)
            if metrics is not None:
                metrics.end(aborted=outcome.exit_code > 1)
        else:
            hours = f"{schedule.start:%H:%M} to {schedule.end:%H:%M} {schedule.time_zone}"
            outcome = _no_turn(tenant, f"its turn did not come in the window ({hours}); the order rotates every night")
        outcomes.append(outcome)
        notes += _report(job.name, outcome, now(), pushgateway, textfiles)
    return NightlySummary(job=job.name, started=_stamp(started), ended=_stamp(now()), tenants=outcomes, notes=notes)


def _chosen(job: Job, only: Sequence[str]) -> list[Tenant]:
    if not job.tenants:
        raise ConfigError([f"{job.name}: has no tenants; run it with dladiff protect or dladiff submit"])
    names = [tenant.name for tenant in job.tenants]
    faults = [
        f"--tenant {shown(n)}: unknown{nearest(n, names)}; there are: {', '.join(names)}"
        for n in only
        if n not in names
    ]
    if faults:
        raise ConfigError(faults)
    return [tenant for tenant in job.tenants if not only or tenant.name in only]


def _run(tenant: Tenant, protect: Protect, now: Clock, deadline: datetime | None) -> TenantOutcome:
    started, clock = _stamp(now()), time.monotonic()
    counts: dict[str, int] = {}
    trace, missed = "", list[str]()
    try:
        summary = protect(tenant.run, deadline=deadline)
        counts = {name: getattr(summary, name) for name in (*COUNTS, "lost_photos")}
        code, reason = summary.exit_code, ""
        if tenant.retention is not None:
            found = retain(tenant.run.output, tenant.retention, tenant.run, really=True, unattended=True, now=now)
            counts |= {"deleted": len(found.due), "deleted_photos": sum(one.photos for one in found.due)}
            missed = found.missed
        if code or summary.failed_photos or summary.unread:
            reason = f"dladiff failed --output {shown(tenant.run.output)} says what failed and why"
        if summary.left:
            late = f"{summary.left} identities are left for the next window"
            reason = f"{late}; {reason}" if summary.failed or summary.quarantined or summary.lost_photos else late
        reason = "; ".join([reason] * bool(reason) + [f"retention did not reach {line}" for line in missed])
    except DladiffError as error:
        code, reason = 3 if isinstance(error, StorageError) else 2, redacted(" ".join(str(error).split()))
    except Exception as error:  # a bug with one tenant's photos must not stop the others
        code, reason = (
            3,
            f"{type(error).__name__}: {redacted(' '.join(str(error).split()))}; its traceback is in the JSON summary",
        )
        trace = redacted(traceback.format_exc())
    seconds = round(time.monotonic() - clock, 1)
    return TenantOutcome(
        tenant=tenant.name,
        exit_code=code,
        reason=reason,
        started=started,
        seconds=seconds,
        counts=counts,
        traceback=trace,
    )


def _no_turn(tenant: Tenant, reason: str) -> TenantOutcome:
    return TenantOutcome(tenant=tenant.name, exit_code=NO_TURN, reason=reason, started=None, seconds=0.0)


def _report(
    job: str, outcome: TenantOutcome, ended: datetime, pushgateway: str | None, textfiles: Path | None
) -> list[str]:
    """Send an outcome to the monitoring; return its errors as notes."""
    identities = {name: outcome.counts[name] for name in COUNTS[1:] if name in outcome.counts}
    sent = Outcome(
        job=job,
        tenant=outcome.tenant,
        exit_code=outcome.exit_code,
        ended=ended.timestamp(),
        identities=identities,
    )
    notes: list[str] = []
    calls: list[Callable[[], object]] = []
    if pushgateway is not None:
        calls.append(lambda: push(pushgateway, sent))
    if textfiles is not None:
        calls.append(lambda: write_textfile(textfiles, sent))
    for call in calls:
        try:
            call()
        except StorageError as error:
            notes.append(redacted(str(error)))  # the gateway's address may hold a password
    return notes


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
