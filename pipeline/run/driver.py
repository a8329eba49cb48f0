"""`dladiff protect`: plan, run the new tasks with Ray Data, build the manifest."""

import logging
import shlex
import uuid
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console

from dladiff.errors import ConfigError, DamagedError, StorageError
from pipeline.config import RunConfig
from pipeline.process.private import private_files
from pipeline.process.temporary import temporary_folder
from pipeline.records import commit as records
from pipeline.records.allowance import within
from pipeline.records.latest import note_workers_out
from pipeline.records.lease import Lease
from pipeline.run.actor import LATE
from pipeline.run.engine import results
from pipeline.run.estimate import estimate
from pipeline.run.finalise import Finaliser
from pipeline.run.fitness import Fault
from pipeline.run.live import Actors
from pipeline.run.plan import Plan, Retry, make_plan, write_plan
from pipeline.run.progress import Progress
from pipeline.run.totals import Totals
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown
from pipeline.storage.open import open_storage
from pipeline.telemetry.driver import DriverMetrics

log = logging.getLogger(__name__)

WORST = ("quarantined", "failed", LATE, "done", "skipped")
"""Status of an identity whose parts ended differently: the first of these that occurs."""


@dataclass
class Summary:
    """Counts of identities: planned == done + failed + quarantined + skipped. Nothing is kept for each photo.

    `left` counts skipped identities that were not started before the deadline. `lost_photos` counts failed photos of
    done or skipped identities. `mixed_identities` counts done identities whose photos show different people.
    """

    planned: int
    photos: int
    todo: int
    done: int = 0
    failed: int = 0
    quarantined: int = 0
    skipped: int = 0
    left: int = 0
    lost_photos: int = 0
    mixed_identities: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Files of the input that are no photos, hidden files, and what was not read, by name."""
    may_recover: bool = False
    """Whether a failure of earlier runs that is not tried again may end otherwise with the same files."""
    ended: Totals = field(default_factory=Totals)
    """Of the tasks that this run ended."""
    max_failed: str | None = None
    """The setting of this name."""

    @property
    def unread(self) -> int:
        """Number of names and folders of the input that cannot be read."""
        return self.left_out.get("unread", 0)

    @property
    def exit_code(self) -> int:
        """0 if all are protected, 1 if some failed or are left, or if a part of the input was not read.

        With `max_failed` that many photos of this run may have failed, or names of the input not been read.
        """
        if self.max_failed is None:
            return 1 if self.failed or self.quarantined or self.left or self.lost_photos or self.unread else 0
        failed, tried = self.failed_photos + self.unread, self.ended.photos + self.unread
        return 0 if not self.left and within(self.max_failed, failed, tried) else 1

    @property
    def failed_photos(self) -> int:
        """Number of photos of this run that failed, alone or with their task."""
        return self.ended.failed_photos

    def _may_recover(self) -> bool:
        """Return whether any failure may end otherwise with the same files."""
        return self.may_recover or self.ended.lasting < self.ended.failures

    def advice(self, output: str) -> list[str]:
        """Return what to do next, one command a line."""
        address = shlex.quote(shown(output))
        lines = []
        if self.failed or self.quarantined or self.lost_photos:
            help_of = "protect --retry-failed tries them again" if self._may_recover() else "replace those files"
            lines.append(f"next: dladiff failed --output {address} says why; {help_of}")
        if self.max_failed is not None and self.exit_code == 0 and (failed := self.failed_photos + self.unread):
            lines.append(f"{failed} failed photos of this run are within max_failed: {self.max_failed}")
        if self.unread:
            lines.append(f"next: {self.unread} names or folders of the input were not read, the log names them")
        if self.left:
            lines.append("next: run the same command again for what is left")
        if self.mixed_identities:
            lines.append("next: photos of one identity show different people; --layout flat makes each photo its own")
        if not lines:
            lines.append(f"next: dladiff report --output {address} shows before and after")
        return lines


def protect(
    config: RunConfig,
    *,
    retry: Retry | None = None,
    console: Console | None = None,
    metrics: DriverMetrics | None = None,
    deadline: datetime | None = None,
    verbose: bool = False,
) -> Summary:
    """Protect every new identity. If nothing is new, Ray is not started and nothing is written.

    No task is started after `deadline`; the rest counts as skipped and is done by the next run. `verbose` prints a
    line for each identity on a terminal too.
    Raises ConfigError or ModelError (exit code 2), StorageError (3).
    """
    with private_files(config.umask), temporary_folder() as folder:
        plan = make_plan(config, retry=retry, folder=folder)
        if not plan.todo and plan.index.fresh:
            return _summary(plan, config)
        if plan.todo and (faults := config.missing_weights()):
            raise ConfigError(faults)
        if plan.todo and (note := plan.note(config)):
            log.warning("%s", note)
        target = open_storage(config.output, create=True, s3=config.s3)
        with Lease(target) as lease:
            if _changed(target, plan):  # another run worked before we got the lease
                plan = make_plan(config, retry=retry, folder=folder)
            watch = _Watch(console or Console(stderr=True, emoji=False), metrics or DriverMetrics(), deadline, verbose)
            with Finaliser(target, plan, lease, folder) as finaliser:
                return _run(config, plan, target, finaliser, watch)


@dataclass(frozen=True)
class _Watch:
    """Where progress is shown, and the deadline."""

    console: Console
    metrics: DriverMetrics
    deadline: datetime | None
    verbose: bool


def _run(config: RunConfig, plan: Plan, target: Storage, finaliser: Finaliser, watch: _Watch) -> Summary:
    summary, run_id = _summary(plan, config), uuid.uuid4().hex
    write_plan(target, plan, run_id)
    longest = min(config.max_photos_per_task, plan.todo_photos) * estimate(config, plan, None).rate.high
    watch.metrics.begin(plan.identities, plan.todo, config.gpus_per_actor, expected_task_s=longest)
    if plan.todo:
        for identity, part in plan.retried:
            records.clear_starts(target, identity, part)
        assert plan.todo_file is not None
        until = watch.deadline.timestamp() if watch.deadline else None

        def note(faults: list[Fault]) -> None:
            watch.metrics.nodes_out(len({fault.node for fault in faults}))
            with suppress(StorageError, DamagedError):  # a note for `status`; the log has the line
                note_workers_out(target, [fault.line() for fault in faults])

        stream = results(config, plan.todo_file, target, run_id, until, note)
        view = Progress(watch.console, plan.todo, watch.metrics.cost, Actors(target), verbose=watch.verbose)
        with view as progress, closing(stream):  # on an error Ray ends before the message is printed
            for result in stream:
                finaliser.ended(result)
                summary.ended.add(result)
                if result["status"] != LATE:  # late tasks stay in `left`
                    watch.metrics.advance(result)
                progress.advance(result)
    if summary.ended.tasks != plan.todo:
        raise StorageError(f"{plan.todo - summary.ended.tasks} tasks gave no result; run again, finished work is kept")
    for name, statuses in finaliser.statuses.items():
        found = {*statuses, plan.kept.get(name, "skipped")}
        status = next(s for s in WORST if s in found)
        summary.left += status == LATE
        counted = "skipped" if status == LATE else status
        setattr(summary, counted, getattr(summary, counted) + 1)
    summary.lost_photos += summary.ended.lost_photos
    summary.mixed_identities = len(summary.ended.mixed)
    finaliser.finish()
    return summary


def _changed(target: Storage, plan: Plan) -> bool:
    now = records.read_index(target, plan.index)
    return [(r.place, r.tag) for r in now.rows()] != [(r.place, r.tag) for r in plan.index.rows()]


def _summary(plan: Plan, config: RunConfig) -> Summary:
    counts: Counter[str] = plan.settled()
    return Summary(
        planned=plan.identities,
        photos=plan.photos,
        todo=plan.todo,
        failed=counts["failed"],
        quarantined=counts["quarantined"],
        skipped=counts["skipped"],
        lost_photos=plan.lost_photos,
        left_out=plan.left_out.counts(),
        may_recover=plan.may_recover,
        max_failed=config.max_failed,
    )
