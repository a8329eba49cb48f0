"""List failures, and let the next run try them again."""

from typing import Any

from pipeline.records.commit import clear_failure, clear_starts, load_many, read_index, stored
from pipeline.records.lease import Lease
from pipeline.run.plan import Retry
from pipeline.storage.base import Storage


def listed(storage: Storage, which: Retry) -> list[dict[str, Any]]:
    """Return identity, part, status and reason of failed tasks, then of photos that failed in tasks that are done."""
    index = read_index(storage)
    rows = [
        {"identity": r.identity, "part": r.part, "status": r.status, "reason": r.reason, "attempts": r.attempts}
        for _, r in sorted(index.failed.items())
        if which.takes(r.reason)
    ]
    for task, row in sorted(index.done.items()):
        if task in index.failed or not row.key:  # `forget` has reset it
            continue
        lost = [text for text in row.photo_reasons if which.takes(text)]
        rows += [{"identity": row.identity, "part": row.part, "status": "photo", "reason": text} for text in lost]
    return rows


def forget(storage: Storage, which: Retry) -> int:
    """Make the next run try failures again; return the number of tasks.

    Deletes failure records and their starts. For single failed photos, it removes the key from the commit record: the
    stored photos stay until the task is done again. Raises StorageError, also when another run holds the lease.
    """
    with Lease(storage):
        index = read_index(storage)
        failed = {task for task, row in index.failed.items() if which.takes(row.reason)}
        for identity, part in failed:
            clear_starts(storage, identity, part)
            clear_failure(storage, identity, part)
        partly = {task: row for task, row in index.done.items() if any(map(which.takes, row.photo_reasons))}
        for row in partly.values():
            for _, record in load_many(storage, [row.place]):
                storage.put_if_match(row.place, stored(storage, record | {"key": ""}), row.tag)
        return len(failed | partly.keys())
