"""The end of identities and of a run: records are read and leftovers swept as tasks end, then the manifests are built.

The actors work meanwhile, so that little is left when the last task ends.
"""

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dladiff.errors import DamagedError, NotFoundError, StorageError
from pipeline.records import manifest
from pipeline.records.gathered import Gathered
from pipeline.records.index import Index, Recorded, read_index, recorded
from pipeline.records.lease import Lease
from pipeline.records.loading import READERS, Record, load_record
from pipeline.run.actor import LATE
from pipeline.run.engine import TODO_FILES
from pipeline.run.plan import Plan
from pipeline.storage.base import Storage
from pipeline.storage.keys import task_name

log = logging.getLogger(__name__)

FOLDER = {"done": "done", "failed": "failed", "quarantined": "failed"}
"""Folder of the record that a task of this status wrote; one that was not started, or had no photo, wrote none."""


class Finaliser:
    """Ends the identities of a run as their last task ends. Leaving the context waits for its threads."""

    def __init__(self, target: Storage, plan: Plan, lease: Lease, folder: Path) -> None:
        self._target, self._plan, self._lease = target, plan, lease
        self.statuses: dict[str, list[str]] = {}
        """Statuses of the tasks that ended, by identity."""
        self._left = dict(plan.pending)
        self._before: dict[str, list[Recorded]] = {name: [] for name in plan.pending}
        for row in plan.index.rows():
            if row.identity in self._before:
                self._before[row.identity].append(row)
        self._written: dict[str, set[str]] = {}
        self._gathered = Gathered(folder)
        self._threads = ThreadPoolExecutor(READERS)
        self._running: deque[tuple[str, Future[None]]] = deque()
        self._again: list[str] = []
        """Identities whose end failed, for a storage that was out of reach: the end of the run repeats it."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the identities whose end has begun."""
        self._threads.shutdown(cancel_futures=True)

    def ended(self, result: dict[str, Any]) -> None:
        """Note a task's result. After the last task of an identity no actor works on it. Raises StorageError."""
        self._lease.check()
        name, status = result["identity"], result["status"]
        self.statuses.setdefault(name, []).append(status)
        if folder := FOLDER.get(status):
            place = f"{folder}/{task_name(name, result['part'])}.json"
            self._written.setdefault(name, set()).add(place)
        self._left[name] -= 1
        if not self._left[name] and set(self.statuses[name]) != {LATE}:
            self._running.append((name, self._threads.submit(self._end, name)))
        while self._running and self._running[0][1].done():
            self._take()

    def finish(self) -> None:
        """End what is left, and build the manifests. Raises StorageError."""
        while self._running:
            self._take()
        for name in self._again:
            self._end(name)
        for entry in list(self._target.list(TODO_FILES)):
            self._target.delete(entry.key)
        self._lease.check()
        index = read_index(self._target, self._known(), add=self._gathered.add)
        manifest.write_manifest(self._target, index, self._gathered)

    def _take(self) -> None:
        name, future = self._running.popleft()
        try:
            future.result()
        except StorageError as error:
            log.warning("%s; this is tried again at the end of the run", error)
            self._again.append(name)

    def _known(self) -> Index:
        """Return the plan's index with the records that were gathered."""
        plan = self._plan.index
        known = replace(plan, done=dict(plan.done), failed=dict(plan.failed), damaged={})
        for row, _ in self._gathered.records.values():
            known.put(row)
        return known

    def _end(self, name: str) -> None:
        """Read the records of an identity whose tasks ended; sweep leftovers of dead attempts and earlier splits."""
        whole = set(self.statuses[name]) == {"done"} and name not in self._plan.kept
        before = self._before[name]
        stale = [row for row in before if whole and row.task not in self._plan.tasks[name]]
        places = {row.place for row in before} | self._written.get(name, set())
        read: dict[str, Record] = {}
        current: list[Recorded] = []
        damaged = False
        for place in sorted(places - {row.place for row in stale}):
            with suppress(NotFoundError):
                if (tag := self._target.tag(place)) is None:
                    continue
                try:
                    record = load_record(self._target, place)
                except DamagedError:
                    damaged = True
                    continue
                row = recorded(place, tag, record)
                self._gathered.add(row, record)
                if place.startswith("done/"):
                    read[place] = record
                    current.append(row)
        self._lease.check()
        if not damaged:  # a damaged record may name any photo: the next run repeats its task and sweeps
            manifest.sweep(self._target, name, current, stale, read)
