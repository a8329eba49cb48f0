"""Records on storage: starts, commits and failures of tasks, and the index that caches them."""

import hashlib
import json
import logging
import math
import os
import re
import socket
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dladiff.errors import DamagedError, NotFoundError, StorageError
from pipeline.records.checked import STATUSES, fits, incomplete
from pipeline.records.loading import MAX_NOTE, load_record, or_damage, read_many
from pipeline.records.loading import READERS as READERS  # re-exported: callers import all of records from here
from pipeline.records.loading import Record as Record
from pipeline.records.loading import load as load
from pipeline.records.loading import load_many as load_many
from pipeline.records.schema import NO_PARQUET, RECORDS, TIME, parquet, with_later
from pipeline.storage.base import FOLDERS, Entry, Storage
from pipeline.storage.keys import shown, task_name
from pipeline.storage.open import open_storage

JSON = "application/json"
INDEX = "manifest/records.parquet"
NULLABLE = ("started_at", "finished_at", "ssimulacra2")  # columns of the index that may be null
RUNS_FACTOR = 3  # starts of other runs count 1/RUNS_FACTOR: their driver may have died

RECORD = re.compile(r"(done|failed)/[^/.][^/]*\.json")  # excludes hidden files of file managers
log = logging.getLogger(__name__)

Task = tuple[str, int]
"""Name of the identity, and 0 for a whole identity or the number of its part, from 1."""


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
    path, data = f"done/{task_name(record['identity'], record.get('part', 0))}.json", _dump(record)
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
    storage.put(path, _dump(record | {"attempts": attempts, "identity_row": row}), JSON)


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


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The driver's summary of one record: a row of manifest/records.parquet. `place` is the record's storage key."""

    place: str
    tag: str
    identity: str
    part: int
    parts: int
    key: str
    status: str
    reason: str
    photos: int
    failed_photos: int
    incomplete: int
    photo_reasons: list[str]
    attempts: int
    started_at: str | None
    finished_at: str | None
    seconds: float
    device: str
    ssimulacra2: float | None = None
    """Lowest of its photos."""

    @property
    def task(self) -> Task:
        """Identity and part."""
        return self.identity, self.part

    def accounts_for(self, photos: int) -> bool:
        """Return whether the record names as many photos as its task has, each stored, failed or deleted."""
        return self.photos == photos and not self.incomplete


@dataclass
class Index:
    """Rows by task. `fresh`: the stored index holds exactly these rows."""

    done: dict[Task, Recorded] = field(default_factory=dict)
    failed: dict[Task, Recorded] = field(default_factory=dict)
    fresh: bool = False
    damaged: dict[str, str] = field(default_factory=dict)
    """Unreadable records by storage key, and why. Their tasks count as not done; a commit replaces them."""

    def standing(self) -> dict[Task, Recorded]:
        """Return one row a task, sorted; of a commit and a failure record the failure, which is newer."""
        return dict(sorted((self.done | self.failed).items()))

    def rows(self) -> list[Recorded]:
        """Return all rows, sorted by storage key."""
        return sorted([*self.done.values(), *self.failed.values()], key=lambda row: row.place)


def read_index(storage: Storage, last: Index | None = None, *, cached: bool = True) -> Index:
    """List the records, and read those that neither the stored index nor the `last` one holds.

    With `cached=False` every record is read: the stored index may be forged.
    """
    entries: dict[str, Entry] = {}
    for folder in ("done/", "failed/"):
        entries |= {entry.key: entry for entry in storage.list(folder) if RECORD.fullmatch(entry.key)}
    known = {row.place: row for row in last.rows()} if last else stored_rows(storage) if cached else {}
    same = {key for key, row in known.items() if key in entries and entries[key].tag == row.tag}
    index = Index(fresh=len(same) == len(entries) == len(known))
    for key in same:
        _file(index, known[key])

    def read(storage: Storage, key: str) -> Recorded:
        return _row(key, entries[key].tag, load_record(storage, key))

    for key, row in read_many(storage, sorted(set(entries) - same), or_damage(read)):
        if isinstance(row, DamagedError):
            index.damaged[key] = str(row)
            log.warning("%s", shown(str(row)))
        elif row is not None:
            _file(index, row)
    return index


def _file(index: Index, row: Recorded) -> None:
    (index.done if row.place.startswith("done/") else index.failed)[row.task] = row


def stored_rows(storage: Storage) -> dict[str, Recorded]:
    """Return the rows of the stored index by storage key; none when it is damaged or of another version."""
    if storage.tag(INDEX) is None:
        return {}
    try:
        file = parquet(storage.get(INDEX), RECORDS)
        rows = with_later(file.read(), RECORDS).to_pylist()
        rows = rows if set(file.schema_arrow.names) <= set(RECORDS.names) else []
    except NO_PARQUET:
        return {}
    return {row["place"]: Recorded(**row) for row in rows if _is_row(row)}


def _is_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row of the stored index is complete and belongs to the storage key that it names."""
    if any(row[name] is None for name in RECORDS.names if name not in NULLABLE):
        return False
    folder, _, name = row["place"].partition("/")
    whole = folder in ("done", "failed") and name == f"{task_name(row['identity'], row['part'])}.json"
    times = all(fits(row[name], TIME) for name in ("started_at", "finished_at"))
    counts = 0 <= row["failed_photos"] <= row["photos"] and 0 <= row["incomplete"] and 0 <= row["seconds"] < math.inf
    return whole and times and counts and None not in row["photo_reasons"] and row["status"] in STATUSES


def _row(place: str, tag: str, record: Record) -> Recorded:
    about, rows = record.get("identity_row") or {}, record.get("photos", [])
    lost = [p for p in rows if p["status"] == "failed"]
    scores = (p["ssimulacra2"] for p in rows if p.get("output_key") and p.get("ssimulacra2") is not None)
    return Recorded(
        place=place,
        tag=tag,
        identity=record["identity"],
        part=record.get("part", 0),
        parts=record.get("parts", 1),
        key=record["key"],
        status=record.get("status", "done"),
        reason=record.get("reason", ""),
        photos=len(rows),
        failed_photos=len(lost),
        incomplete=incomplete(rows),
        photo_reasons=[f"{p['source_uri']}: {p.get('reason') or ''}" for p in lost],
        attempts=about.get("attempts") or 0,
        started_at=about.get("started_at"),
        finished_at=about.get("finished_at"),
        seconds=float(sum((about.get("seconds") or {}).values())),
        device=about.get("device") or "",
        ssimulacra2=min(scores, default=None),
    )


def _dump(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, allow_nan=False).encode()
