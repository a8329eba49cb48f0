"""Read every stored photo again: checksum, size, pixels, bound against its original; find files without a record."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from dladiff.core import quality
from dladiff.core.arrays import Pixels
from dladiff.errors import NotFoundError, PhotoError, StorageError
from pipeline.records.checked import LAYERS, NO_PHOTO, layer_settings, stored_fault
from pipeline.records.commit import INDEX, Index, load_many, read_index, stored_rows
from pipeline.records.latest import latest_plan, planned_tasks
from pipeline.records.manifest import FILES, GROUP, IDENTITIES_KEY, PHOTOS_KEY, merged
from pipeline.records.output_format import is_lossy
from pipeline.records.schema import NO_PARQUET, parquet, table, with_later
from pipeline.sources.decode import decode
from pipeline.sources.originals import Originals, originals, stored_limit
from pipeline.storage.base import Storage

SLACK = 1e-6  # tolerance of the bound, [0, 1] units: far below one grey level
FIGURES = 1e-3  # tolerance of recorded figures, dB and [0, 1] units
READERS = 4  # photos decoded at a time: each may be large


@dataclass
class Verified:
    """Number of photos read and compared with their original; faults, one line each; stored files without a record."""

    photos: int = 0
    compared: int = 0
    faults: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    left: int = 0
    """Photos of the latest plan without a record: not done yet, or the record was deleted."""
    notes: list[str] = field(default_factory=list)


def verify(storage: Storage, inputs: Sequence[str] = ()) -> Verified:
    """Check every photo of every commit record. Raises StorageError when the storage cannot be listed.

    All records are read; the stored index is not used. Originals are read below `inputs`, else below the input that
    the output records.
    """
    index, sources = read_index(storage, cached=False), originals(storage, inputs)
    result = Verified(faults=[*index.damaged.values()], notes=[sources.note] if sources.note else [])
    named: set[str] = set()
    rows = _rows(storage, index, result)
    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(islice(rows, 8 * READERS)):
            for row, (fault, compared) in zip(
                batch, pool.map(lambda r: _check(storage, r, sources), batch), strict=True
            ):
                result.photos += 1
                result.compared += compared
                named.add(row["output_key"])
                result.faults += [f"{row['output_key']}: {fault}"] if fault else []
    result.orphans = [entry.key for entry in storage.list("photos/") if entry.key not in named]
    _check_plan(storage, index, result)
    result.faults += _index_faults(storage, index) + _manifest_faults(storage, index)
    return result


def _rows(storage: Storage, index: Index, result: Verified) -> Iterator[dict[str, Any]]:
    """Yield the rows of stored photos; add a fault for records that do not account for their photos."""
    keys = [row.place for _, row in sorted(index.done.items())]
    for key, record in load_many(storage, keys):
        photos = record.get("photos", [])
        if not photos:
            result.faults.append(f"{key}: names no photo; delete it, and the next protect makes them again")
        for photo in photos:
            if photo.get("output_key"):
                yield photo | {"record": key}
            elif photo["status"] not in NO_PHOTO and (fault := stored_fault(photo)):
                result.faults.append(f"{key}: {photo['source_uri']} {fault}")


def _check_plan(storage: Storage, index: Index, result: Verified) -> None:
    """Count photos of the latest plan without a record; add a fault for records with fewer photos than planned."""
    latest = latest_plan(storage)
    if latest is None:
        return
    planned = planned_tasks(storage, latest)
    if planned.fault:
        result.faults.append(planned.fault)
    for task, (key, photos) in planned.tasks.items():
        row, failed = index.done.get(task), index.failed.get(task)
        if row is not None and row.key == key:
            if row.photos != photos:
                result.faults.append(f"{row.place}: names {row.photos} photos, its plan {photos}")
        elif failed is None or failed.key != key:
            result.left += photos


def _index_faults(storage: Storage, index: Index) -> list[str]:
    """Return a fault if rows of the stored index differ from their unchanged records."""
    fresh = {row.place: row for row in index.rows()}
    known = {key: row for key, row in stored_rows(storage).items() if key in fresh}
    count = sum(row.tag == fresh[key].tag and asdict(row) != asdict(fresh[key]) for key, row in known.items())
    return [f"{INDEX}: {count} rows are not what the records say; run `dladiff finalise`"] if count else []


def _check(storage: Storage, row: dict[str, Any], sources: Originals) -> tuple[str, bool]:
    """Return the fault of one photo, "" for none, and whether it was compared with its original."""
    if fault := stored_fault(row):
        return fault, False
    try:
        data = storage.get(row["output_key"], stored_limit(row))
    except NotFoundError:
        return f"is missing; delete {row['record']}, and the next protect makes it again", False
    except StorageError as error:
        return str(error), False
    try:
        if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
            return "its checksum is not the recorded one", False
        stored = decode(data, max_pixels=row["width"] * row["height"], min_side=1).pixels
    except PhotoError as error:
        return str(error), False
    if stored.shape[:2] != (row["height"], row["width"]):
        return f"is {stored.shape[1]} x {stored.shape[0]} px, recorded {row['width']} x {row['height']}", False
    source = _source(row, sources)
    if source is None:
        return "", False
    if source.shape != stored.shape:
        return (
            f"its original is {source.shape[1]} x {source.shape[0]} px, recorded {row['width']} x {row['height']}",
            True,
        )
    change = np.abs(stored.astype(np.int16) - source.astype(np.int16)).max(axis=2)
    excess = "" if is_lossy(row["output_key"]) else next(_excess(row, change), "")  # a bound holds before encoding
    return excess or _other_figure(row, stored, source), True


def _other_figure(row: dict[str, Any], stored: Pixels, source: Pixels) -> str:
    """Return which of L-inf and PSNR differs from the record, "" for none."""
    for measure in (quality.linf, quality.psnr):
        value, name = measure(stored, source), measure.__name__
        recorded = row.get(name)
        if not math.isclose(value, math.inf if recorded is None else recorded, abs_tol=FIGURES):
            return f"its {name} is {value}, recorded {recorded}"
    return ""


def _excess(row: dict[str, Any], change: Any) -> Iterator[str]:
    """Yield the largest change above the bound: both layers' bounds inside the face boxes, layer 1's elsewhere.

    Both layers under one visibility budget have one bound everywhere. Where a face was displaced there is none: the
    bound holds against the displaced photo, which is not stored.
    """
    settings = (layer_settings(row[name]) if row.get(name) else None for name in LAYERS)
    first, second, joint = (found["eta"] if found else 0.0 for found in settings)
    bound = np.full(change.shape, max(first, joint))
    for face in row.get("faces") or []:
        x0, y0, x1, y1 = (max(0.0, v) for v in face["box"])
        bound[int(y0) : int(np.ceil(y1)) + 1, int(x0) : int(np.ceil(x1)) + 1] = max(first + second, joint)
    if row.get("geometry"):
        x0, y0, x1, y1 = (max(0, v) for v in row["geometry"]["box"])
        bound[y0:y1, x0:x1] = 1.0
    over = change / 255 - bound
    if over.max(initial=0) > SLACK:
        y, x = np.unravel_index(int(over.argmax()), over.shape)
        yield f"changed by {change[y, x]}/255 at x {x}, y {y}, bound {bound[y, x] * 255:.1f}/255"


def _manifest_faults(storage: Storage, index: Index) -> list[str]:
    """Return a fault for each manifest whose rows differ from the records, compared by digests of rows."""
    wanted: dict[str, set[bytes]] = {key: set() for key in FILES}
    for photos, identity in merged(storage, index):
        for key, rows in ((PHOTOS_KEY, photos), (IDENTITIES_KEY, [identity])):
            wanted[key] |= _digests(table(rows, FILES[key]))
    faults = []
    for key, digests in wanted.items():
        try:
            file = parquet(storage.get(key), FILES[key])
            batches = (with_later(batch, FILES[key]) for batch in file.iter_batches(GROUP))
            found = set().union(*map(_digests, batches))
        except NotFoundError:
            faults += [f"{key}: is missing; run `dladiff finalise`"] if index.rows() else []
        except NO_PARQUET as error:
            faults.append(f"{key}: cannot be read ({type(error).__name__}); run `dladiff finalise`")
        else:
            if count := max(len(digests - found), len(found - digests)):
                faults.append(f"{key}: {count} rows are not what the records say; run `dladiff finalise`")
    return faults


def _digests(rows: pa.Table | pa.RecordBatch) -> set[bytes]:
    """Return a digest of each row."""
    texts = (json.dumps(row, sort_keys=True, default=str) for row in rows.to_pylist())
    return {hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16] for text in texts}


def _source(row: dict[str, Any], sources: Originals) -> Any:
    """Return the original's pixels; None when it is gone, outside of the input, unreadable or changed."""
    try:
        data = sources.read(row["source_uri"])
        if hashlib.sha256(data).hexdigest() != row["source_sha256"]:
            return None
        return decode(data, max_pixels=row["width"] * row["height"], min_side=1).pixels
    except (PhotoError, StorageError):
        return None
