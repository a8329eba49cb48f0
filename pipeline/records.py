"""Records on storage: starts, commits and failures, one a task, and the index that spares reading them all."""

import hashlib
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from dladiff.errors import DamagedError, StorageError
from pipeline.names import shown, task_name
from pipeline.rows import RECORDS, parquet
from pipeline.storage import FOLDERS, Entry, Storage, open_storage

READERS = 16  # records are small: their latency is hidden by reading that many at once
JSON = "application/json"
INDEX = "manifest/records.parquet"
RUNS_FACTOR = 3  # starts under other drivers may have ended with them: only that many times more are a crash loop

RECORD = re.compile(r"(done|failed)/[^/.][^/]*\.json")  # what a file manager leaves beside them is none
log = logging.getLogger(__name__)

Found = TypeVar("Found")
Record = dict[str, Any]
Task = tuple[str, int]
"""Name of the identity; 0 for a whole identity, else the number of its part, from 1."""


def now() -> str:
    """Return the time, UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat()


def open_run(uri: str, *, begun: bool = True) -> Storage:
    """Open a run's output. Where nothing of one lies, raise StorageError, or only warn if it need not have `begun`."""
    storage = open_storage(uri)
    if not any(True for folder in FOLDERS for _ in storage.list(f"{folder}/")):
        fault = f"no run has written to {shown(uri)}; check the address"
        if begun:
            raise StorageError(fault)
        log.warning("%s", fault)
    return storage


def key_of(identity: str, tags: Iterable[tuple[str, str]], config_digest: str) -> str:
    """Return the key of a piece of work: identity, (photo key, content tag) pairs, configuration digest."""
    text = json.dumps([identity, sorted(map(list, tags)), config_digest])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def commit(storage: Storage, record: Record, *, replaces: str | None = None) -> bool:
    """Write a commit record; whether it is ours that stands.

    A record of another key, or a damaged one, is replaced; one of the same key wins over ours, unless its tag is
    `replaces`.
    """
    place, data = f"done/{task_name(record['identity'], record.get('part', 0))}.json", _dump(record)
    for _ in range(8):
        if storage.put_if_absent(place, data):
            return True
        tag = storage.tag(place)
        if tag is None:
            continue
        if tag != replaces and _replaceable(storage, place).get("key") == record["key"]:
            return False
        if storage.put_if_match(place, data, tag):
            return True
    raise StorageError(f"{storage.uri_of(place)} keeps changing; is a second run writing to this output?")


def fail(storage: Storage, record: Record) -> None:
    """Write a failure record; `attempts` counts on from the last one of the same key."""
    place = f"failed/{task_name(record['identity'], record.get('part', 0))}.json"
    before = 0
    if storage.tag(place) is not None:
        old = _replaceable(storage, place)
        before = int(old.get("attempts", 0)) if old.get("key") == record["key"] else 0
    attempts = before + 1
    row = record.get("identity_row", {}) | {"attempts": attempts}
    storage.put(place, _dump(record | {"attempts": attempts, "identity_row": row}), JSON)


def clear_failure(storage: Storage, identity: str, part: int = 0) -> None:
    """Remove a task's failure record."""
    storage.delete(f"failed/{task_name(identity, part)}.json")


def count_starts(storage: Storage, task: Task, key: str, run_id: str) -> int:
    """Return how often work of this key was begun and not ended in this run.

    Starts of earlier runs count one in RUNS_FACTOR: their driver may have died, and not by their fault.
    """
    notes = [load(storage, entry.key) for entry in list(storage.list(f"starts/{task_name(*task)}/"))]
    same = [note.get("run_id") == run_id for note in notes if note.get("key") == key]
    ours = same.count(True)
    return ours + (len(same) - ours) // RUNS_FACTOR


def write_start(storage: Storage, task: Task, key: str, run_id: str) -> str:
    """Note that work begins; return the note's storage key, to be deleted when it ends in any way."""
    place = f"starts/{task_name(*task)}/{uuid.uuid4().hex}.json"
    note = {"identity": task[0], "part": task[1], "key": key, "run_id": run_id}
    note |= {"host": socket.gethostname(), "pid": os.getpid(), "time": now()}
    storage.put(place, _dump(note), JSON)
    return place


def clear_starts(storage: Storage, identity: str, part: int = 0) -> None:
    """Forget a task's starts."""
    for entry in list(storage.list(f"starts/{task_name(identity, part)}/")):
        storage.delete(entry.key)


def load(storage: Storage, key: str) -> Record:
    """Read one record. Raises StorageError when it is gone, DamagedError when it is no JSON object."""
    try:
        record = json.loads(storage.get(key))
    except ValueError as error:
        raise DamagedError(f"{storage.uri_of(key)} is not JSON; delete it and run again") from error
    if not isinstance(record, dict):
        raise DamagedError(f"{storage.uri_of(key)} is no record; delete it and run again")
    return record


def _replaceable(storage: Storage, key: str) -> Record:
    """Read a record that ours may replace: a damaged one says nothing."""
    try:
        return load(storage, key)
    except DamagedError:
        return {}


def load_many(storage: Storage, keys: Iterable[str]) -> Iterator[tuple[str, Record]]:
    """Yield (key, record) in the order given; at most READERS records are held at a time."""
    return _read_many(storage, keys, load)


def _read_many(
    storage: Storage, keys: Iterable[str], read: Callable[[Storage, str], Found]
) -> Iterator[tuple[str, Found]]:
    waiting: list[tuple[str, Future[Found]]] = []
    with ThreadPoolExecutor(READERS) as pool:
        for key in keys:
            waiting.append((key, pool.submit(read, storage, key)))
            if len(waiting) == READERS:
                first, future = waiting.pop(0)
                yield first, future.result()
        for key, future in waiting:
            yield key, future.result()


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the driver keeps of one record: a row of manifest/records.parquet."""

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
    photo_reasons: list[str]
    attempts: int
    started_at: str | None
    finished_at: str | None
    seconds: float
    device: str

    @property
    def task(self) -> Task:
        """Identity and part."""
        return self.identity, self.part


@dataclass
class Index:
    """Rows by task; `fresh` says whether the index on storage holds exactly these."""

    done: dict[Task, Recorded] = field(default_factory=dict)
    failed: dict[Task, Recorded] = field(default_factory=dict)
    fresh: bool = False
    damaged: dict[str, str] = field(default_factory=dict)
    """Records that cannot be read, and why: their tasks count as not done, and a commit replaces them."""

    def standing(self) -> dict[Task, Recorded]:
        """Return the row that stands for each task, sorted: a failure record is newer than a commit beside it."""
        return dict(sorted((self.done | self.failed).items()))

    def rows(self) -> list[Recorded]:
        """Return every row, sorted by place."""
        return sorted([*self.done.values(), *self.failed.values()], key=lambda row: row.place)


def read_index(storage: Storage, last: Index | None = None) -> Index:
    """List the records and read those that the stored index, or the `last` one read, does not know: often none."""
    entries: dict[str, Entry] = {}
    for folder in ("done/", "failed/"):
        entries |= {entry.key: entry for entry in storage.list(folder) if RECORD.fullmatch(entry.key)}
    known = {row.place: row for row in last.rows()} if last else _stored(storage)
    same = {place for place, row in known.items() if place in entries and entries[place].tag == row.tag}
    index = Index(fresh=len(same) == len(entries) == len(known))
    for place in same:
        _file(index, known[place])

    def read(storage: Storage, place: str) -> Recorded | DamagedError:
        try:
            return _row(place, entries[place].tag, load(storage, place))
        except (KeyError, TypeError, AttributeError, ValueError):
            return DamagedError(f"{storage.uri_of(place)} is no record; delete it and run again")
        except DamagedError as error:
            return error

    for place, row in _read_many(storage, sorted(set(entries) - same), read):
        if isinstance(row, DamagedError):
            index.damaged[place] = str(row)
            log.warning("%s", shown(str(row)))
        else:
            _file(index, row)
    return index


def _file(index: Index, row: Recorded) -> None:
    (index.done if row.place.startswith("done/") else index.failed)[row.task] = row


def _stored(storage: Storage) -> dict[str, Recorded]:
    import pyarrow as pa

    if storage.tag(INDEX) is None:
        return {}
    try:
        found = parquet(storage.get(INDEX)).read()
        if found.schema.names != RECORDS.names:
            return {}  # of another version: it is only a cache
        rows = found.to_pylist()
    except (pa.ArrowException, ValueError):
        return {}  # damaged
    return {row["place"]: Recorded(**row) for row in rows}


def _row(place: str, tag: str, record: Record) -> Recorded:
    about = record.get("identity_row") or {}
    lost = [p for p in record.get("photos", []) if p.get("status") == "failed"]
    return Recorded(
        place=place,
        tag=tag,
        identity=record["identity"],
        part=record.get("part", 0),
        parts=record.get("parts", 1),
        key=record["key"],
        status=record.get("status", "done"),
        reason=record.get("reason", ""),
        photos=about.get("photos", 0),
        failed_photos=about.get("failed_photos", 0),
        photo_reasons=[f"{p['source_uri']}: {p.get('reason', '')}" for p in lost],
        attempts=about.get("attempts") or 0,
        started_at=about.get("started_at"),
        finished_at=about.get("finished_at"),
        seconds=float(sum((about.get("seconds") or {}).values())),
        device=about.get("device") or "",
    )


def _dump(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, allow_nan=False).encode()
