"""Records on storage: starts, commits, failures, the driver's lease, and the Parquet manifest built from them."""

import hashlib
import io
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from dladiff.errors import StorageError
from pipeline.names import escape, shown
from pipeline.rows import IDENTITIES, PHOTOS, table
from pipeline.storage import Storage

LOCK = "lock.json"
LEASE_S = 120.0  # seconds a lease lives without renewal
RENEW_S = 20.0
READERS = 16  # records are small: their latency is hidden by reading that many at once
JSON = "application/json"

Record = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """Commit and failure records by identity; `tags` are the commit records' storage tags."""

    done: dict[str, Record] = field(default_factory=dict)
    failed: dict[str, Record] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def now() -> str:
    """Return the time, UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat()


def key_of(identity: str, tags: Iterable[tuple[str, str]], config_digest: str) -> str:
    """Return the key of a piece of work: identity, (photo key, content tag) pairs, configuration digest."""
    text = json.dumps([identity, sorted(map(list, tags)), config_digest])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def commit(storage: Storage, record: Record, *, replaces: str | None = None) -> bool:
    """Write a commit record; whether it is ours that stands.

    A record of another key is replaced; one of the same key wins over ours, unless its tag is `replaces`.
    """
    place, data = f"done/{escape(record['identity'])}.json", _dump(record)
    for _ in range(8):
        if storage.put_if_absent(place, data):
            return True
        tag = storage.tag(place)
        if tag is None:
            continue
        if tag != replaces and _load(storage, place).get("key") == record["key"]:
            return False
        if storage.put_if_match(place, data, tag):
            return True
    raise StorageError(f"{storage.uri_of(place)} keeps changing; is a second run writing to this output?")


def fail(storage: Storage, record: Record) -> None:
    """Write a failure record; `attempts` counts on from the last one of the same key."""
    place = f"failed/{escape(record['identity'])}.json"
    before = 0
    if storage.tag(place) is not None:
        old = _load(storage, place)
        before = old.get("attempts", 0) if old.get("key") == record["key"] else 0
    attempts = before + 1
    storage.put(place, _dump(record | {"attempts": attempts, "identity_row": _counted(record, attempts)}), JSON)


def _counted(record: Record, attempts: int) -> Record:
    row: Record = record.get("identity_row", {})
    return row | {"attempts": attempts}


def clear_failure(storage: Storage, identity: str) -> None:
    """Remove an identity's failure record."""
    storage.delete(f"failed/{escape(identity)}.json")


def count_starts(storage: Storage, identity: str, key: str) -> int:
    """Return how often work of this key was begun and not ended."""
    entries = list(storage.list(f"starts/{escape(identity)}/"))
    return sum(_load(storage, entry.key).get("key") == key for entry in entries)


def write_start(storage: Storage, identity: str, key: str) -> str:
    """Note that work begins; return the note's storage key, to be deleted when it ends in any way."""
    place = f"starts/{escape(identity)}/{uuid.uuid4().hex}.json"
    note = {"identity": identity, "key": key, "host": socket.gethostname(), "pid": os.getpid(), "time": now()}
    storage.put(place, _dump(note), JSON)
    return place


def clear_starts(storage: Storage, identity: str) -> None:
    """Forget an identity's starts."""
    for entry in list(storage.list(f"starts/{escape(identity)}/")):
        storage.delete(entry.key)


def load_records(storage: Storage) -> Records:
    """Read every commit and failure record."""
    records = Records()
    with ThreadPoolExecutor(READERS) as pool:
        done = list(storage.list("done/"))
        for entry, record in zip(done, pool.map(lambda e: _load(storage, e.key), done), strict=True):
            records.done[record["identity"]] = record
            records.tags[record["identity"]] = entry.tag
        for record in pool.map(lambda e: _load(storage, e.key), list(storage.list("failed/"))):
            records.failed[record["identity"]] = record
    return records


def write_manifest(storage: Storage) -> tuple[int, int]:
    """Build both Parquet files from the records alone, one put each; return how many photos and identities.

    A failure record stands for newer work than the same identity's commit record, which a commit would have removed.
    """
    records = load_records(storage)
    latest = [record for _, record in sorted((records.done | records.failed).items())]
    photos = [row for record in latest for row in record.get("photos", [])]
    identities = [record["identity_row"] for record in latest if record.get("identity_row")]
    put_parquet(storage, "manifest/photos.parquet", photos, PHOTOS)
    put_parquet(storage, "manifest/identities.parquet", identities, IDENTITIES)
    return len(photos), len(identities)


def put_parquet(storage: Storage, key: str, rows: Sequence[Mapping[str, Any]], schema: Any) -> None:
    """Serialise rows in memory and write them in one put: a broken write never leaves half a file."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table(rows, schema), sink)
    storage.put(key, sink.getvalue(), "application/vnd.apache.parquet")


def _dump(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, allow_nan=False).encode()


def _load(storage: Storage, key: str) -> Record:
    try:
        record: Record = json.loads(storage.get(key))
    except ValueError as error:
        raise StorageError(f"{storage.uri_of(key)} is not JSON; delete it and run again") from error
    return record


class Lease:
    """lock.json: one driver a run. Renewed by a thread; another driver takes over what was not renewed."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.owner = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Take the lease. Raises StorageError that says who holds it."""
        if not self.storage.put_if_absent(LOCK, self._note()) and not self._take_over():
            holder = self._held() or {}
            raise StorageError(
                f"another run writes to {shown(self.storage.uri)}: host {shown(str(holder.get('host')))}, "
                f"pid {holder.get('pid')}, since {holder.get('time')}; wait for it, or {LEASE_S:.0f} s after its end"
            )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back, if it is still ours."""
        self._stop.set()
        self._thread.join()
        try:
            if (self._held() or {}).get("owner") == self.owner:
                self.storage.delete(LOCK)
        except StorageError:
            if error is None:
                raise

    def _note(self) -> bytes:
        note = {"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid(), "time": now()}
        return _dump(note | {"expires": time.time() + LEASE_S})

    def _held(self) -> Record | None:
        return _load(self.storage, LOCK) if self.storage.tag(LOCK) is not None else None

    def _take_over(self) -> bool:
        tag = self.storage.tag(LOCK)
        if tag is None:
            return self.storage.put_if_absent(LOCK, self._note())
        held = _load(self.storage, LOCK)
        if held.get("expires", 0) > time.time() and not _is_dead(held):
            return False
        return self.storage.put_if_match(LOCK, self._note(), tag)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                tag = self.storage.tag(LOCK)
                if tag is None or (self._held() or {}).get("owner") != self.owner:
                    return  # taken over: commits stay safe, each is decided by its own conditional put
                self.storage.put_if_match(LOCK, self._note(), tag)
            except StorageError:
                continue  # a passing fault; the next renewal comes before the lease expires


def _is_dead(held: Record) -> bool:
    """Whether the holder ran on this host and its process is gone."""
    if held.get("host") != socket.gethostname() or not isinstance(held.get("pid"), int):
        return False
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
