"""Failures as people ask for them: which, why, and how to have them taken up again."""

from typing import Any

from pipeline.plan import Retry
from pipeline.records import clear_failure, clear_starts, read_index
from pipeline.storage import Storage


def listed(storage: Storage, which: Retry) -> list[dict[str, Any]]:
    """Return identity, part, status and reason of failed tasks, then of photos that failed in tasks that are done."""
    index = read_index(storage)
    rows = [
        {"identity": r.identity, "part": r.part, "status": r.status, "reason": r.reason, "attempts": r.attempts}
        for _, r in sorted(index.failed.items())
        if which.takes(r.reason)
    ]
    for task, row in sorted(index.done.items()):
        lost = [text for text in row.photo_reasons if task not in index.failed and which.takes(text)]
        rows += [{"identity": row.identity, "part": row.part, "status": "photo", "reason": text} for text in lost]
    return rows


def forget(storage: Storage, which: Retry) -> int:
    """Remove failure records and their starts, so that the next run takes the work up; return how many.

    Photos that failed alone stay with their identity's commit record: `protect --retry-failed` takes those up.
    """
    tasks = [task for task, row in read_index(storage).failed.items() if which.takes(row.reason)]
    for identity, part in tasks:
        clear_starts(storage, identity, part)
        clear_failure(storage, identity, part)
    return len(tasks)
