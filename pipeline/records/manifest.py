"""The Parquet manifests, built from the records alone, and the sweep of orphaned photos."""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.process.temporary import temporary_folder
from pipeline.records.commit import INDEX, Index, Record, Recorded, load_many, read_index
from pipeline.records.output_format import is_output_name
from pipeline.records.schema import IDENTITIES, PHOTOS, RECORDS, table
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape

PHOTOS_KEY, IDENTITIES_KEY = "manifest/photos.parquet", "manifest/identities.parquet"
FILES = {PHOTOS_KEY: PHOTOS, IDENTITIES_KEY: IDENTITIES}
GROUP = 500  # rows of one row group, held in memory: a plan row names up to a hundred photos


class ParquetFile:
    """Writes rows to a temporary file and stores it in one put; at most GROUP rows are in memory."""

    def __init__(self, folder: Path, schema: Any) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.parquet"
        self.schema = schema
        self.count = 0
        self._rows: list[Mapping[str, Any]] = []
        self._writer = pq.ParquetWriter(self.path, schema)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= GROUP:
            self._flush()

    def put(self, storage: Storage, key: str) -> None:
        """Close the file and store it at `key`."""
        self.close()
        storage.put_file(key, self.path)

    def close(self) -> None:
        """Write the remaining rows; afterwards the file can be read."""
        if self._writer.is_open:
            self._flush()
            self._writer.close()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the closed file; GROUP rows are in memory."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(GROUP):
                yield from batch.to_pylist()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(table(self._rows, self.schema))
            self._rows = []


def write_manifest(storage: Storage, index: Index | None = None, *, force: bool = False) -> tuple[int, int]:
    """Write photos.parquet, identities.parquet and the index from the records; return counts of photos and identities.

    Does nothing when the index is fresh and both files exist. With `force` every record is read and all files are
    written. The index is written last. Raises StorageError.
    """
    index = index or read_index(storage, cached=not force)
    if index.fresh and not force and all(storage.tag(key) is not None for key in FILES):
        standing = index.standing()
        return sum(row.photos for row in standing.values()), len({name for name, _ in standing})
    with temporary_folder() as folder:
        photos, identities = (ParquetFile(folder, schema) for schema in FILES.values())
        for rows, row in merged(storage, index):
            for photo in rows:
                photos.add(photo)
            identities.add(row)
        known = ParquetFile(folder, RECORDS)
        for entry in index.rows():
            known.add(asdict(entry))
        for key, file in zip(FILES, (photos, identities), strict=True):
            file.put(storage, key)
        known.put(storage, INDEX)
    return photos.count, identities.count


def write_rows(storage: Storage, key: str, rows: Iterable[Mapping[str, Any]], schema: Any) -> None:
    """Store rows as one Parquet file."""
    with temporary_folder() as folder:
        file = ParquetFile(folder, schema)
        for row in rows:
            file.add(row)
        file.put(storage, key)


def sweep(storage: Storage, identity: str, current: list[Recorded], stale: list[Recorded]) -> list[str]:
    """Remove an identity's `stale` records and orphaned photos; return the storage keys removed.

    Stale records are those of an earlier split. Orphaned photos are named by no `current` commit record: an attempt
    died before its commit. Call this only when no actor works on the identity.
    """
    records = dict(load_many(storage, (row.place for row in current)))
    if len(records) < len(current):
        return []  # a damaged record may name any photo: the next run repeats its task and sweeps
    removed = [row.place for row in stale]
    named = {photo.get("output_key") for record in records.values() for photo in record.get("photos", [])}
    folder = f"photos/{escape(identity)}/"
    removed += [e.key for e in storage.list(folder) if e.key not in named and is_output_name(e.key)]
    for key in removed:
        storage.delete(key)
    return removed


def merged(storage: Storage, index: Index) -> Iterator[tuple[list[Record], Record]]:
    """Yield each identity's photo rows and identity row; the parts of a split identity are merged.

    Damaged records are skipped and removed from `index`, so the next run reads them again.
    """
    standing = index.standing()
    found = load_many(storage, (row.place for row in standing.values()))
    read: set[str] = set()
    by_key = {row.place: row for row in standing.values()}
    for _, group in groupby(((by_key[key], record) for key, record in found), key=lambda pair: pair[0].identity):
        parts = [(row, record) for row, record in group if row.task == (record["identity"], record.get("part", 0))]
        read |= {row.place for row, _ in parts}
        if parts:
            yield _identity(parts)
    for row in by_key.values():
        if row.place not in read:
            (index.done if row.place.startswith("done/") else index.failed).pop(row.task)


def _identity(parts: list[tuple[Recorded, Record]]) -> tuple[list[Record], Record]:
    newest_first = sorted(parts, key=lambda pair: pair[0].finished_at or "", reverse=True)
    photos: dict[str, Record] = {}
    for _, record in newest_first:
        for photo in record.get("photos", []):
            own = photo | {"identity": record["identity"]}
            photos.setdefault(photo["source_uri"], own)  # a part of an earlier split may name the same photo
    rows = [photos[uri] for uri in sorted(photos)]
    about = [record.get("identity_row") or {} for _, record in parts]
    newest = newest_first[0][0]
    name = {"identity": newest.identity}
    if len(parts) == 1 and newest.parts == 1:
        return rows, {"status": newest.status} | about[0] | name | {"parts": 1}
    statuses = {row.status for row, _ in parts}
    status = next((s for s in ("quarantined", "failed") if s in statuses), "done")
    if status == "done" and len([r for r, _ in parts if r.parts == newest.parts]) < newest.parts:
        status = "partial"
    seconds: dict[str, float] = {}
    for row in about:
        for step, value in (row.get("seconds") or {}).items():
            seconds[step] = round(seconds.get(step, 0.0) + value, 3)
    times = [row["started_at"] for row in about if row.get("started_at")]
    return rows, (newest_first[0][1].get("identity_row") or {}) | name | {
        "status": status,
        "reason": "; ".join(dict.fromkeys(row.reason for row, _ in parts if row.reason)),
        "parts": newest.parts,
        "photos": len(rows),
        "failed_photos": sum(row["status"] == "failed" for row in rows),
        "attempts": max(row.attempts for row, _ in parts),
        "seconds": seconds,
        "peak_memory_bytes": max((row.get("peak_memory_bytes") or 0 for row in about), default=0),
        "started_at": min(times, default=None),
        "finished_at": newest.finished_at,
    }
