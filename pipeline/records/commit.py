"""Records on storage: starts, commits and failures of tasks."""

import hashlib
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from dladiff.errors import DamagedError, NotFoundError, StorageError
from pipeline.records.checked import incomplete
from pipeline.records.index import INDEX as INDEX  # re-exported: callers import all of records from here
from pipeline.records.index import Index as Index
from pipeline.records.index import Recorded as Recorded
from pipeline.records.index import Task as Task
from pipeline.records.index import read_index as read_index
from pipeline.records.index import stored_rows as stored_rows
from pipeline.records.loading import MAX_NOTE
from pipeline.records.loading import READERS as READERS
from pipeline.records.loading import Record as Record
from pipeline.records.loading import load as load
from pipeline.records.loading import load_many as load_many
from pipeline.records.loading import load_record as load_record
from pipeline.records.packed import pack
from pipeline.storage.base import FOLDERS, Storage
from pipeline.storage.keys import shown, task_name
from pipeline.storage.open import open_storage

JSON = "application/json"
RUNS_FACTOR = 3  # starts of other runs count 1/RUNS_FACTOR: their driver may have died

log = logging.getLogger(__name__)


def now() -> str:
    """Return the current time, UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat()


def open_run(uri: str, *, begun: bool = True) -> Storage:
    """Open a run's output. If it is empty, raise StorageError, or only log a warning with `begun=False`."""
    storage = open_storage(uri)
    if not any(True for folder in FOLDERS for _ in storage.list(f"{folder}/")):
        fault = f"no run has written to {shown(uri)}; check the address"
        if begun:
            raise StorageError(fault)
        log.warning("%s", fault)
    return storage


def key_of(identity: str, tags: Iterable[tuple[str, str]], config_digest: str) -> str:
    """Return the digest of identity, (photo key, content tag) pairs and configuration digest: the key of a task."""
    text = json.dumps([identity, sorted(map(list, tags)), config_digest])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def commit(storage: Storage, record: Record, *, replaces: str | None = None) -> bool:
    """Write a commit record; return whether it was written.

    A record of another key, or a damaged one, is replaced. A record of the same key that names as many photos is kept,
    unless its tag is `replaces`. Raises StorageError when the record keeps changing.
    """
    path, data = f"done/{task_name(record['identity'], record.get('part', 0))}.json", stored(storage, record)
    for _ in range(8):
        if storage.put_if_absent(path, data):
            return True
        tag = storage.tag(path)
        if tag is None:
            continue
        if tag != replaces and _same_work(_replaceable(storage, path), record):
            return False
        if storage.put_if_match(path, data, tag):
            return True
    raise StorageError(f"{storage.uri_of(path)} keeps changing; is a second run writing to this output?")


def fail(storage: Storage, record: Record) -> None:
    """Write a failure record; `attempts` continues from the previous record of the same key."""
    path = f"failed/{task_name(record['identity'], record.get('part', 0))}.json"
    before = 0
    if storage.tag(path) is not None:
        old = _replaceable(storage, path)
        before = old.get("attempts", 0) if old.get("key") == record["key"] else 0
    attempts = before + 1
    row = record.get("identity_row", {}) | {"attempts": attempts}
    storage.put(path, stored(storage, record | {"attempts": attempts, "identity_row": row}), JSON)


def clear_failure(storage: Storage, identity: str, part: int = 0) -> None:
    """Remove a task's failure record."""
    storage.delete(f"failed/{task_name(identity, part)}.json")


def count_starts(storage: Storage, task: Task, key: str, run_id: str) -> int:
    """Return how often a task with this key was started in this run without ending.

    RUNS_FACTOR starts of earlier runs count as one, since their driver may have died. Damaged notes do not count.
    """
    notes = [_note(storage, entry.key) for entry in list(storage.list(f"starts/{task_name(*task)}/"))]
    same = [note.get("run_id") == run_id for note in notes if note.get("key") == key]
    ours = same.count(True)
    return ours + (len(same) - ours) // RUNS_FACTOR


def write_start(storage: Storage, task: Task, key: str, run_id: str) -> str:
    """Store a note that a task starts; return its storage key. The caller deletes it when the task ends."""
    path = f"starts/{task_name(*task)}/{uuid.uuid4().hex}.json"
    note = {"identity": task[0], "part": task[1], "key": key, "run_id": run_id}
    note |= {"host": socket.gethostname(), "pid": os.getpid(), "time": now()}
    storage.put(path, _dump(note), JSON)
    return path


def clear_starts(storage: Storage, identity: str, part: int = 0) -> None:
    """Delete the notes of a task's starts."""
    for entry in list(storage.list(f"starts/{task_name(identity, part)}/")):
        storage.delete(entry.key)


def _note(storage: Storage, key: str) -> Record:
    """Return the note of a start, {} when it is damaged or gone."""
    try:
        return load(storage, key, MAX_NOTE)
    except (DamagedError, NotFoundError):
        return {}


def _replaceable(storage: Storage, key: str) -> Record:
    """Return the record at a storage key, {} when it is damaged or gone."""
    try:
        return load_record(storage, key)
    except (DamagedError, NotFoundError):
        return {}


def _same_work(standing: Record, ours: Record) -> bool:
    """Return whether a stored commit record has our key, as many photos, and no more incomplete ones."""
    rows = standing.get("photos", [])
    same = standing.get("key") == ours["key"] and len(rows) == len(ours["photos"])
    return same and incomplete(rows) <= incomplete(ours["photos"])


def stored(storage: Storage, record: Record) -> bytes:
    """Return a record with complete rows as it is stored; store the settings that it names. Raises StorageError."""
    return json.dumps(pack(storage, record), separators=(",", ":"), allow_nan=False).encode()


def _dump(note: Mapping[str, Any]) -> bytes:
    return json.dumps(note, indent=1, allow_nan=False).encode()
