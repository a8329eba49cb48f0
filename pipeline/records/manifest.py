"""The Parquet manifests, built from the records that changed, and the sweep of orphaned photos."""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.process.temporary import temporary_folder
from pipeline.records.gathered import BATCH, Gathered, Run, merge, of_records, runs, stored_batches
from pipeline.records.index import INDEX, MANIFESTS, Index, Recorded, read_index
from pipeline.records.loading import Record, load_many
from pipeline.records.output_format import is_output_name
from pipeline.records.schema import IDENTITIES, NO_PARQUET, PHOTOS, RECORDS, table
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


def write_manifest(
    storage: Storage, index: Index | None = None, gathered: Gathered | None = None, *, force: bool = False
) -> tuple[int, int]:
    """Write photos.parquet, identities.parquet and the index; return the counts of photos and identities.

    Rows of identities whose records did not change come from the stored manifests, the others from `gathered` or from
    their records. Does nothing when the index is fresh and both files are there. With `force` every record is read.
    The index is written last, with the tags of the files: other files than those are not used. Raises StorageError.
    """
    with temporary_folder() as folder:
        gathered = gathered or Gathered(folder)
        index = index or read_index(storage, cached=not force, add=gathered.add)
        tags = {key: storage.tag(key) for key in FILES}
        there = all(tag is not None and index.manifests.get(key, tag) == tag for key, tag in tags.items())
        if index.fresh and there and not force:
            standing = index.standing()
            return sum(row.photos for row in standing.values()), len({name for name, _ in standing})
        reuse = there and not force and index.manifests.keys() == FILES.keys()
        built = Built(storage, index, gathered, folder)
        try:
            counts = built.write(reuse=reuse)
        except NO_PARQUET:
            if not reuse:
                raise
            counts = built.write(reuse=False)  # the stored manifests are damaged or of another version
        for key in FILES:
            storage.put_file(key, built.file(key))
        manifests = json.dumps({key: storage.tag(key) for key in FILES}).encode()
        rows = index.rows()
        whole = pa.table({name: [getattr(row, name) for row in rows] for name in RECORDS.names}, RECORDS)
        pq.write_table(whole.replace_schema_metadata({MANIFESTS: manifests}), folder / "records.parquet")
        storage.put_file(INDEX, folder / "records.parquet")
        return counts


class Built:
    """The manifests, as files in a folder."""

    def __init__(self, storage: Storage, index: Index, gathered: Gathered, folder: Path) -> None:
        self._storage, self._index, self._gathered, self._folder = storage, index, gathered, folder

    def file(self, key: str) -> Path:
        """Return the file of a manifest."""
        return self._folder / key.rpartition("/")[2]

    def write(self, *, reuse: bool) -> tuple[int, int]:
        """Write both; return the counts of their rows. Raises NO_PARQUET where a stored one cannot be reused."""
        changed = self._changed(reuse)
        self._gather(changed)
        of: dict[str, list[Recorded]] = {}
        for row in self._index.standing().values():
            of.setdefault(row.identity, []).append(row)
        for rows in of.values():
            rows.sort(key=lambda row: row.finished_at or "", reverse=True)
        counts: dict[str, tuple[int, int]] = {}

        def chosen(name: str, found: list[Run]) -> list[pa.RecordBatch]:
            rows = of_records(found, of.get(name, []))
            failed = pc.sum(pc.equal(rows["status"], "failed")).as_py() or 0
            counts[name] = (rows.num_rows, failed)
            return list(rows.to_batches())

        def people() -> Iterator[pa.RecordBatch]:
            names = (name for name in sorted(changed) if name in of)
            while some := list(islice(names, GROUP)):
                rows = [_about([self._gathered.records[r.place] for r in of[n]], counts.get(n, (0, 0))) for n in some]
                yield from table(rows, IDENTITIES).to_batches()

        def keep(name: str) -> bool:
            return name in of and name not in changed

        photos = merge(self._old(PHOTOS_KEY, reuse), self._gathered.runs(), keep, chosen)
        written = _write(self.file(PHOTOS_KEY), PHOTOS, photos)
        known = merge(self._old(IDENTITIES_KEY, reuse), [runs(people())], keep, _as_they_are)
        return written, _write(self.file(IDENTITIES_KEY), IDENTITIES, known)

    def _changed(self, reuse: bool) -> set[str]:
        """Return the identities whose rows in the stored manifests are not those of their records."""
        index = self._index
        places = {row.place: (row.tag, row.identity) for row in index.rows()}
        if not reuse:
            return {name for _, name in places.values()}
        gone = {name for place, (_, name) in index.stored.items() if place not in places}
        return gone | {pair[1] for place, pair in places.items() if index.stored.get(place) != pair}

    def _gather(self, changed: set[str]) -> None:
        """Read the standing records of these identities; unreadable ones leave the index: the next run reads them."""
        rows = {row.place: row for row in self._index.standing().values() if row.identity in changed}
        unread = {place: row for place, row in rows.items() if not self._gathered.has(row)}
        for place, record in load_many(self._storage, list(unread)):
            self._gathered.add(unread.pop(place), record)
        for row in unread.values():
            self._index.drop(row)

    def _old(self, key: str, reuse: bool) -> Iterator[Run]:
        """Return the rows of a stored manifest by identity, none if it is not reused."""
        if not reuse:
            return iter(())
        path = self._folder / f"old-{key.rpartition('/')[2]}"
        self._storage.get_file(key, path)
        return runs(stored_batches(path, FILES[key]))


def _as_they_are(name: str, found: list[Run]) -> Iterator[pa.RecordBatch]:
    for _, _, batch, start, stop in found:
        yield batch.slice(start, stop - start)


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    """Write rows in groups of BATCH, so that equal rows make equal files; return their number."""
    count, waiting = 0, pa.Table.from_batches([], schema)
    with pq.ParquetWriter(path, schema) as writer:
        held: list[pa.RecordBatch] = []
        for batch in batches:
            held.append(batch)
            count += batch.num_rows
            if count % BATCH < batch.num_rows:  # a group is full
                waiting = pa.Table.from_batches([*waiting.to_batches(), *held], schema)
                held = []
                while waiting.num_rows >= BATCH:
                    writer.write_table(waiting.slice(0, BATCH).combine_chunks())
                    waiting = waiting.slice(BATCH)
        rest = pa.Table.from_batches([*waiting.to_batches(), *held], schema)
        if rest.num_rows:
            writer.write_table(rest.combine_chunks())
    return count


def write_rows(storage: Storage, key: str, rows: Iterable[Mapping[str, Any]], schema: Any) -> None:
    """Store rows as one Parquet file."""
    with temporary_folder() as folder:
        file = ParquetFile(folder, schema)
        for row in rows:
            file.add(row)
        file.put(storage, key)


def sweep(
    storage: Storage,
    identity: str,
    current: list[Recorded],
    stale: list[Recorded],
    read: Mapping[str, Record] | None = None,
) -> list[str]:
    """Remove an identity's `stale` records and orphaned photos; return the storage keys removed.

    Stale records are those of an earlier split. Orphaned photos are named by no `current` commit record: an attempt
    died before its commit. Call this only when no actor works on the identity. `read`: records that the caller has.
    """
    places = [row.place for row in current]
    records = dict(load_many(storage, places)) if read is None else {key: read[key] for key in places if key in read}
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
            index.drop(row)


def _identity(parts: list[tuple[Recorded, Record]]) -> tuple[list[Record], Record]:
    newest_first = sorted(parts, key=lambda pair: pair[0].finished_at or "", reverse=True)
    photos: dict[str, Record] = {}
    for _, record in newest_first:
        for photo in record.get("photos", []):
            own = photo | {"identity": record["identity"]}
            photos.setdefault(photo["source_uri"], own)  # a part of an earlier split may name the same photo
    rows = [photos[uri] for uri in sorted(photos)]
    failed = sum(row["status"] == "failed" for row in rows)
    return rows, _about([(row, record.get("identity_row") or {}) for row, record in newest_first], (len(rows), failed))


def _about(newest_first: Sequence[tuple[Recorded, Mapping[str, Any]]], counts: tuple[int, int]) -> Record:
    """Return an identity's row from those of its records. `counts`: its photos, and how many of them failed."""
    newest, latest = newest_first[0]
    name = {"identity": newest.identity}
    if len(newest_first) == 1 and newest.parts == 1:
        return {"status": newest.status} | dict(latest) | name | {"parts": 1}
    statuses = {row.status for row, _ in newest_first}
    status = next((s for s in ("quarantined", "failed") if s in statuses), "done")
    if status == "done" and len([r for r, _ in newest_first if r.parts == newest.parts]) < newest.parts:
        status = "partial"
    in_order = sorted(newest_first, key=lambda pair: pair[0].part)
    seconds: dict[str, float] = {}
    for _, row in in_order:
        for step, value in (row.get("seconds") or {}).items():
            seconds[step] = round(seconds.get(step, 0.0) + value, 3)
    times = [row["started_at"] for _, row in newest_first if row.get("started_at")]
    return (
        dict(latest)
        | name
        | {
            "status": status,
            "reason": "; ".join(dict.fromkeys(row.reason for row, _ in in_order if row.reason)),
            "parts": newest.parts,
            "photos": counts[0],
            "failed_photos": counts[1],
            "attempts": max(row.attempts for row, _ in newest_first),
            "seconds": seconds,
            "peak_memory_bytes": max(row.get("peak_memory_bytes") or 0 for _, row in newest_first),
            "started_at": min(times, default=None),
            "finished_at": newest.finished_at,
        }
    )
