"""Status of an output: counts, rates and time left, read from storage, once or repeatedly."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from statistics import median
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar

from pipeline.records.commit import Index, Recorded, Task, read_index
from pipeline.records.latest import Latest, latest_plan, planned_tasks
from pipeline.records.lease import LEASE_S, LOCK
from pipeline.run.live import FAILURES, RECENT, Actors, panel, safe
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

log = logging.getLogger(__name__)


def status(storage: Storage, index: Index | None = None) -> dict[str, Any]:
    """Return counts of done, failed, quarantined and left tasks, of photos and lost photos, and rates.

    A task is an identity or a part of one. `left` counts tasks of the latest plan without a record, None when the plan
    is unreadable. `lost_photos` counts failed photos of done tasks, `unread` names and folders of the input that the
    latest run could not read, `workers_out` names the workers that it took out. Rates are of the latest run.
    `ssimulacra2_lowest` and `ssimulacra2_median` are of the lowest score of each done task, None where no photo is
    measured.
    """
    index = index or read_index(storage)
    planned, latest = _planned(storage)
    since = latest.started_at
    standing = index.standing()
    if planned:  # neither records of an earlier plan nor those that do not account for their photos count
        standing = {task: row for task, row in standing.items() if task not in planned or _counts(row, *planned[task])}
    counts = Counter(row.status for row in standing.values())
    left = None if planned is None else len(planned.keys() - standing.keys())
    done = [row for row in standing.values() if row.status == "done"]
    rows = [row for row in done if row.started_at and row.finished_at and row.started_at >= since]
    ends = [(datetime.fromisoformat(row.finished_at or ""), row.photos - row.failed_photos) for row in rows]
    starts = [datetime.fromisoformat(row.started_at or "") for row in rows]
    photos = sum(count for _, count in ends)
    scores = [row.ssimulacra2 for row in done if row.ssimulacra2 is not None]
    span = (max(end for end, _ in ends) - min(starts)).total_seconds() / 3600 if ends else 0.0
    recent = sum(count for end, count in ends if end > datetime.now(UTC) - RECENT)
    rate = photos / span if span > 0 else 0.0
    hours = left * (photos / len(rows)) / rate if left is not None and rate > 0 and rows else None
    return {
        "done": counts["done"],
        "failed": counts["failed"],
        "quarantined": counts["quarantined"],
        "left": left,
        "photos": sum(row.photos - row.failed_photos for row in done),
        "lost_photos": sum(row.failed_photos for row in done),
        "unread": latest.unread,
        "ssimulacra2_lowest": round(min(scores), 1) if scores else None,
        "ssimulacra2_median": round(median(scores), 1) if scores else None,
        "photos_per_hour": round(rate, 1),
        "photos_per_hour_recent": round(recent / (RECENT.total_seconds() / 3600), 1),
        "hours_left": None if hours is None else round(hours, 2),
        "workers_out": list(latest.workers_out),
    }


def _counts(row: Recorded, key: str, photos: int) -> bool:
    """Return whether a record is of the planned work; a commit record must account for all its photos."""
    return row.key == key and (row.status != "done" or row.accounts_for(photos))


def _planned(storage: Storage) -> tuple[dict[Task, tuple[str, int]] | None, Latest]:
    """Return the latest plan's tasks (None if damaged, {} if there is none), and the plan."""
    latest = latest_plan(storage)
    if latest is None:
        return {}, Latest()
    planned = planned_tasks(storage, latest)
    if planned.fault:
        log.warning("%s", shown(planned.fault))
        return None, latest
    return planned.tasks, latest


def watch(storage: Storage, console: Console, every: float, sleep: Callable[[float], None] = time.sleep) -> int:
    """Show the status every `every` seconds until nothing is left or no run is active; return the exit code.

    Live on a terminal, else a line each time. Exit code 0 if all is done, 1 if something failed or is left.
    """
    actors, index = Actors(storage, every), None
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            index = read_index(storage, index)
            facts = status(storage, index)
            if live is None:
                console.print(", ".join(f"{name} {value}" for name, value in facts.items()), soft_wrap=True)
            else:
                live.update(_view(index, facts, actors), refresh=True)
            age = storage.age(LOCK)
            if not facts["left"] or age is None or age > LEASE_S:
                return 1 if facts["failed"] or facts["quarantined"] or facts["left"] is None or facts["left"] else 0
            sleep(every)


def _view(index: Index, facts: dict[str, Any], actors: Actors) -> Group:
    ended = facts["done"] + facts["failed"] + facts["quarantined"]
    head = ProgressBar(total=max(1, ended + (facts["left"] or 0)), completed=ended, width=60)
    bad = [row for row in index.rows() if row.status != "done"] if ended > facts["done"] else []
    last = sorted(bad, key=lambda row: row.finished_at or "")[-FAILURES:]
    lines = [f"{safe(row.identity)}: {row.status} ({safe(row.reason)})" for row in last]
    return panel(head, {name.replace("_", " "): value for name, value in facts.items()}, actors(), lines)
