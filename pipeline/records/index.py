"""The index of an output's records: one row a record, listed and cached in manifest/records.parquet."""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dladiff.errors import DamagedError
from pipeline.records.checked import STATUSES, fits, incomplete
from pipeline.records.loading import Record, load_record, or_damage, read_many
from pipeline.records.schema import NO_PARQUET, RECORDS, TIME, parquet, with_later
from pipeline.storage.base import Entry, Storage
from pipeline.storage.keys import shown, task_name

INDEX = "manifest/records.parquet"
MANIFESTS = b"manifests"  # metadata of the index: tags of the manifests that were built from the same records
NULLABLE = ("started_at", "finished_at", "ssimulacra2")  # columns of the index that may be null
RECORD = re.compile(r"(done|failed)/[^/.][^/]*\.json")  # excludes hidden files of file managers
log = logging.getLogger(__name__)

Task = tuple[str, int]
"""Name of the identity, and 0 for a whole identity or the number of its part, from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
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
    """Rows by task."""

    done: dict[Task, Recorded] = field(default_factory=dict)
    failed: dict[Task, Recorded] = field(default_factory=dict)
    stored: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Tag and identity of each row of the stored index, by storage key: the manifests were built from these records."""
    manifests: dict[str, str] = field(default_factory=dict)
    """Tags of the manifests that were stored together with the index; empty in outputs of earlier versions."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Unreadable records by storage key, and why. Their tasks count as not done; a commit replaces them."""

    @property
    def fresh(self) -> bool:
        """Whether the stored index holds exactly these rows."""
        return not self.damaged and self.stored == {row.place: (row.tag, row.identity) for row in self.rows()}

    def put(self, row: Recorded) -> None:
        """Add a row, or replace it."""
        (self.done if row.place.startswith("done/") else self.failed)[row.task] = row

    def drop(self, row: Recorded) -> None:
        """Remove a row."""
        (self.done if row.place.startswith("done/") else self.failed).pop(row.task, None)

    def standing(self) -> dict[Task, Recorded]:
        """Return one row a task, sorted; of a commit and a failure record the failure, which is newer."""
        return dict(sorted((self.done | self.failed).items()))

    def rows(self) -> list[Recorded]:
        """Return all rows, sorted by storage key."""
        return sorted([*self.done.values(), *self.failed.values()], key=lambda row: row.place)


def read_index(
    storage: Storage,
    last: Index | None = None,
    *,
    cached: bool = True,
    add: Callable[[Recorded, Record], None] = lambda row, record: None,
) -> Index:
    """List the records, and read those that neither the stored index nor the `last` one holds; `add` is given these.

    With `cached=False` every record is read: the stored index may be forged.
    """
    entries: dict[str, Entry] = {}
    for folder in ("done/", "failed/"):
        entries |= {entry.key: entry for entry in storage.list(folder) if RECORD.fullmatch(entry.key)}
    if last is not None:
        known, index = {row.place: row for row in last.rows()}, Index(stored=last.stored, manifests=last.manifests)
    else:
        known, manifests = _stored(storage) if cached else ({}, {})
        stored = {place: (row.tag, row.identity) for place, row in known.items()}
        index = Index(stored=stored, manifests=manifests)
    same = {key for key, row in known.items() if key in entries and entries[key].tag == row.tag}
    for key in same:
        index.put(known[key])

    def read(storage: Storage, key: str) -> tuple[Recorded, Record]:
        record = load_record(storage, key)
        return recorded(key, entries[key].tag, record), record

    for key, found in read_many(storage, sorted(set(entries) - same), or_damage(read)):
        if isinstance(found, DamagedError):
            index.damaged[key] = str(found)
            log.warning("%s", shown(str(found)))
        elif found is not None:
            index.put(found[0])
            add(*found)
    return index


def stored_rows(storage: Storage) -> dict[str, Recorded]:
    """Return the rows of the stored index by storage key; none when it is damaged or of another version."""
    return _stored(storage)[0]


def _stored(storage: Storage) -> tuple[dict[str, Recorded], dict[str, str]]:
    """Return the rows of the stored index, and the tags of the manifests that were stored with it."""
    if storage.tag(INDEX) is None:
        return {}, {}
    try:
        file = parquet(storage.get(INDEX), RECORDS)
        rows = with_later(file.read(), RECORDS).to_pylist()
        rows = rows if set(file.schema_arrow.names) <= set(RECORDS.names) else []
        tags = json.loads((file.schema_arrow.metadata or {}).get(MANIFESTS, b"{}"))
    except NO_PARQUET:
        return {}, {}
    manifests = {str(key): str(tag) for key, tag in tags.items()} if isinstance(tags, dict) else {}
    return {row["place"]: Recorded(**row) for row in rows if _is_row(row)}, manifests


def _is_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row of the stored index is complete and belongs to the storage key that it names."""
    if any(row[name] is None for name in RECORDS.names if name not in NULLABLE):
        return False
    folder, _, name = row["place"].partition("/")
    whole = folder in ("done", "failed") and name == f"{task_name(row['identity'], row['part'])}.json"
    times = all(fits(row[name], TIME) for name in ("started_at", "finished_at"))
    counts = 0 <= row["failed_photos"] <= row["photos"] and 0 <= row["incomplete"] and 0 <= row["seconds"] < math.inf
    return whole and times and counts and None not in row["photo_reasons"] and row["status"] in STATUSES


def recorded(place: str, tag: str, record: Record) -> Recorded:
    """Return the summary of a record, from its storage key, tag and content."""
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
