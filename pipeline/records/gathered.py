"""Rows of new records, kept in sorted Parquet parts on disk until the manifests are built from them."""

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.records.index import Recorded
from pipeline.records.loading import Record
from pipeline.records.schema import PHOTOS, table, with_later

CONVERTED = 500  # photo rows that are converted together: as Python objects they take about 5 MB
PART_ROWS = 25_000  # photo rows of a part, in memory until it is written: about 50 MB
PART_BATCH = 250  # rows of each part in memory while parts are merged: 3.3 million photos have 132 parts, 70 MB
BATCH = 5_000  # rows of a manifest that are read, merged and written together: about 10 MB
RECORD = pa.field("record", pa.string())
"""Column of parts: storage key and tag of the record that a row is of."""

Run = tuple[str, str, pa.RecordBatch, int, int]
"""Rows start to stop of a batch, which are of one identity and, in a part, of one record."""


class Gathered:
    """Rows of records by record batch. Its memory does not grow with the number of photos. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, tuple[Recorded, Mapping[str, Any]]] = {}
        """Summary and identity row of each record that was added, by storage key."""
        self._parts: list[Path] = []
        self._tables: list[pa.Table] = []
        self._rows: list[Mapping[str, Any]] = []
        self._held = 0
        self._lock = threading.Lock()

    def add(self, row: Recorded, record: Record) -> None:
        """Add a record's rows; they replace those of the same storage key."""
        own = {"identity": row.identity, RECORD.name: _id(row)}
        photos = sorted((photo | own for photo in record.get("photos", [])), key=lambda photo: str(photo["source_uri"]))
        with self._lock:
            self.records[row.place] = (row, record.get("identity_row") or {})
            self._rows += photos
            if len(self._rows) >= CONVERTED:
                self._convert()

    def has(self, row: Recorded) -> bool:
        """Return whether a record of this tag was added."""
        found = self.records.get(row.place)
        return found is not None and found[0].tag == row.tag

    def runs(self) -> list[Iterator[Run]]:
        """Return the rows of each part, in the order of identities; of a record that was replaced too."""
        with self._lock:
            self._convert()
            self._write()
            return [runs(_batches(path, PART_BATCH), RECORD.name) for path in self._parts]

    def _convert(self) -> None:
        if self._rows:
            self._tables.append(table(self._rows, PHOTOS.append(RECORD)))
            self._held += len(self._rows)
            self._rows = []
            if self._held >= PART_ROWS:
                self._write()

    def _write(self) -> None:
        if self._tables:
            path = self.folder / f"part-{len(self._parts)}.parquet"
            whole = pa.concat_tables(self._tables)
            keys = [("identity", "ascending"), (RECORD.name, "ascending")]
            order = pc.sort_indices(
                whole.append_column("row", pa.array(np.arange(whole.num_rows))), [*keys, ("row", "ascending")]
            )
            pq.write_table(whole.take(order), path, row_group_size=4 * PART_BATCH, compression="zstd")
            self._parts.append(path)
            self._tables, self._held = [], 0


def _id(row: Recorded) -> str:
    return f"{row.place}\n{row.tag}"


def _batches(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(rows, use_threads=False)


def stored_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a stored manifest. Raises ValueError where a column is missing or of another type."""
    for batch in _batches(path, BATCH):
        whole = with_later(batch, schema)
        if not whole.select(schema.names).schema.equals(schema):
            raise ValueError("its columns are those of another version")
        yield whole.select(schema.names)


def runs(batches: Iterable[pa.RecordBatch], by: str = "identity") -> Iterator[Run]:
    """Yield the runs of equal values of a column. Raises ValueError when rows are not in the order of identities."""
    last = ""
    for batch in batches:
        encoded = pc.run_end_encode(batch[by])
        start = 0
        for value, stop in zip(encoded.values.to_pylist(), encoded.run_ends.to_pylist(), strict=True):
            name = value if by == "identity" else batch["identity"][start].as_py()
            if name is None or name < last:
                raise ValueError("its rows are not in the order of identities")
            yield name, value, batch, start, stop
            last, start = name, stop


def merge(
    old: Iterator[Run],
    new: list[Iterator[Run]],
    keep: Callable[[str], bool],
    chosen: Callable[[str, list[Run]], Iterable[pa.RecordBatch]],
) -> Iterator[pa.RecordBatch]:
    """Yield rows in the order of identities: the old ones of identities to `keep`, and `chosen` rows of the others."""
    kept = (run for run in old if keep(run[0]))
    several = heapq.merge(kept, *new, key=lambda run: run[0])
    batch, first, last = None, 0, 0
    for name, group in groupby(several, key=lambda run: run[0]):
        if keep(name):
            for _, _, one, start, stop in group:
                if one is batch and start == last:  # rows that stay together are not cut
                    last = stop
                    continue
                if batch is not None:
                    yield batch.slice(first, last - first)
                batch, first, last = one, start, stop
        else:
            if batch is not None:
                yield batch.slice(first, last - first)
                batch = None
            yield from chosen(name, list(group))
    if batch is not None:
        yield batch.slice(first, last - first)


def of_records(found: list[Run], standing: list[Recorded]) -> pa.Table:
    """Return the photo rows of an identity's standing records, newest first, in the order of photos.

    A photo has one row: a part of an earlier split may name the same photo.
    """
    by_record: dict[str, list[pa.RecordBatch]] = {}
    for _, record, batch, start, stop in found:
        by_record.setdefault(record, []).append(batch.slice(start, stop - start).select(PHOTOS.names))
    wanted = [by_record.get(_id(row), []) for row in standing]
    rows = pa.Table.from_batches([batch for batches in wanted for batch in batches], PHOTOS)
    if len(standing) == 1:
        return rows
    places: dict[str, int] = {}
    for place, uri in enumerate(rows["source_uri"].to_pylist()):
        places.setdefault(uri, place)
    return rows.take(pa.array([places[uri] for uri in sorted(places)], pa.int64()))
