"""The latest plan of an output: its tasks, and the folders of its photos."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from dladiff.errors import DamagedError, NotFoundError, StorageError, TooLargeError
from pipeline.records.checked import fits
from pipeline.records.commit import Task
from pipeline.records.loading import MAX_NOTE, load
from pipeline.records.schema import NO_PARQUET, PLAN, TIME, columns, parquet
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

LATEST = "plan/latest.json"
MAX_WORKERS, MAX_LINE = 64, 300
"""Workers that a plan names at most, and characters of each."""
COLUMNS = columns(PLAN, ("identity", "part", "key", "uris"))


@dataclass(frozen=True)
class Latest:
    """Content of plan/latest.json; `fault` says what of it cannot be read."""

    plan: str = ""
    """Storage key of the plan's rows."""
    started_at: str = ""
    """Start of its run, UTC as ISO 8601."""
    inputs: tuple[str, ...] = ()
    """Folders or bucket prefixes of its photos; empty in outputs of versions that did not record them."""
    fault: str = ""
    unread: int = 0
    """Names and folders of the input that its run could not read."""
    workers_out: tuple[str, ...] = ()
    """Host and reason of each worker of a cluster that its run took out."""


@dataclass(frozen=True)
class Planned:
    """The tasks of a plan: key of the work and number of photos."""

    tasks: dict[Task, tuple[str, int]] = field(default_factory=dict)
    fault: str = ""


def latest_plan(storage: Storage) -> Latest | None:
    """Read `plan/latest.json`; None before the first run. Raises StorageError when the storage is out of reach."""
    try:
        found = load(storage, LATEST, MAX_NOTE)
    except NotFoundError:
        return None
    except DamagedError:
        return Latest(fault=_fault(storage))
    plan, since, inputs = found.get("plan"), found.get("started_at"), found.get("inputs", [])
    if not isinstance(plan, str) or not plan.startswith("plan/") or not (since is None or fits(since, TIME)):
        return Latest(fault=_fault(storage))
    if not isinstance(inputs, list) or not all(isinstance(uri, str) for uri in inputs):
        return Latest(plan, fault=_fault(storage))
    unread, workers = found.get("unread"), found.get("workers_out", [])
    named = workers if isinstance(workers, list) else []
    return Latest(
        plan,
        since or "",
        tuple(inputs),
        unread=unread if type(unread) is int and unread > 0 else 0,
        workers_out=tuple(line[:MAX_LINE] for line in named[:MAX_WORKERS] if isinstance(line, str)),
    )


def note_workers_out(storage: Storage, lines: Sequence[str]) -> None:
    """Add the workers that the run took out to `plan/latest.json`. Raises StorageError."""
    found = load(storage, LATEST, MAX_NOTE)
    found["workers_out"] = [line[:MAX_LINE] for line in lines[:MAX_WORKERS]]
    storage.put(LATEST, json.dumps(found, indent=1).encode())


def planned_tasks(storage: Storage, latest: Latest) -> Planned:
    """Read the tasks of a plan. Raises StorageError when the storage is out of reach."""
    if not latest.plan:
        return Planned(fault=latest.fault)
    tasks: dict[Task, tuple[str, int]] = {}
    try:
        for batch in parquet(storage.get(latest.plan), COLUMNS).iter_batches(columns=COLUMNS.names):
            counts = pc.list_value_length(batch["uris"]).to_pylist()
            values = [batch[name].to_pylist() for name in ("identity", "part", "key")]
            for name, part, key, count in zip(*values, counts, strict=True):
                if None in (name, part, key):
                    return Planned(fault=_fault(storage))
                tasks[name, part] = (key, count or 0)
    except (NotFoundError, *NO_PARQUET):
        return Planned(fault=_fault(storage))
    return Planned(tasks)


def unchanged(storage: Storage, work: Mapping[str, Any]) -> pq.ParquetFile:
    """Return the stored list of work at key `work["plan"]`, checked against its `size` in bytes and its `sha256`.

    Raises StorageError when it differs from what the driver stored: other writers of the output must not choose what
    the actors read and write.
    """
    try:
        data = storage.get(work["plan"], work["size"])
    except TooLargeError:
        data = b""
    if hashlib.sha256(data).hexdigest() != work["sha256"]:
        where = shown(storage.uri_of(work["plan"]))
        raise StorageError(f"{where} was changed during the run: no work is taken from it; see who writes there")
    return parquet(data)


def _fault(storage: Storage) -> str:
    return f"{storage.uri_of(LATEST)} or its plan is damaged; the next protect writes both"
