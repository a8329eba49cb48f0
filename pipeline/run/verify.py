"""Read every stored photo again: checksum, size, decodes, the bound against its source; and what no record names."""

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
from dladiff.errors import NotFoundError, PhotoError, StorageError
from pipeline.records.checked import LAYERS, NO_PHOTO, layer_settings, stored_fault
from pipeline.records.commit import INDEX, Index, load_many, read_index, stored_rows
from pipeline.records.latest import latest_plan, planned_tasks
from pipeline.records.manifest import FILES, GROUP, IDENTITIES_KEY, PHOTOS_KEY, merged
from pipeline.records.schema import NO_PARQUET, parquet, table
from pipeline.sources.decode import UInt8, decode
from pipeline.sources.originals import Originals, originals, stored_limit
from pipeline.storage.base import Storage

SLACK = 1e-6  # [0, 1] units: far below one grey level
FIGURES = 1e-3  # dB and [0, 1] units: rounding of a recorded figure
READERS = 4  # photos decoded at a time: each may be large


@dataclass
class Verified:
    """Photos read, how many were compared with their source, the faults, one line each, and stored orphans."""

    photos: int = 0
    compared: int = 0
    faults: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    left: int = 0
    """Photos of the latest plan of which no record says anything: work that is left, or a record that was deleted."""
    notes: list[str] = field(default_factory=list)


def verify(storage: Storage, inputs: Sequence[str] = ()) -> Verified:
    """Check every photo of every commit record. Raises StorageError when the storage cannot be listed.

    Records are read afresh, whatever the stored index says. Originals are read below `inputs`, else below the input
    that the output records.
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
    """Yield the rows of stored photos; note the records that do not account for theirs."""
    places = [row.place for _, row in sorted(index.done.items())]
    for place, record in load_many(storage, places):
        photos = record.get("photos", [])
        if not photos:
            result.faults.append(f"{place}: names no photo; delete it, and the next protect makes them again")
        for photo in photos:
            if photo.get("output_key"):
                yield photo | {"record": place}
            elif photo["status"] not in NO_PHOTO and (fault := stored_fault(photo)):
                result.faults.append(f"{place}: {photo['source_uri']} {fault}")


def _check_plan(storage: Storage, index: Index, result: Verified) -> None:
    """Count photos of the latest plan without a record, and find records of fewer photos than it names."""
    latest = latest_plan(storage)
    if latest is None:
        return
    planned = planned_tasks(storage, latest)
    if planned.fault:
        result.faults.append(planned.fault)
    for task, (key, photos) in planned.tasks.items():
        row, failed = index.done.get(task), index.failed.get(task)
        if row is not None and row.key == key:
            if row.photos < photos:
                result.faults.append(f"{row.place}: names {row.photos} photos, its plan {photos}")
        elif failed is None or failed.key != key:
            result.left += photos


def _index_faults(storage: Storage, index: Index) -> list[str]:
    """What the stored index says of a record that is still the one it was read from, and the record does not."""
    fresh = {row.place: row for row in index.rows()}
    known = {place: row for place, row in stored_rows(storage).items() if place in fresh}
    count = sum(row.tag == fresh[place].tag and asdict(row) != asdict(fresh[place]) for place, row in known.items())
    return [f"{INDEX}: {count} rows are not what the records say; run `dladiff finalise`"] if count else []


def _check(storage: Storage, row: dict[str, Any], sources: Originals) -> tuple[str, bool]:
    """The fault of one photo, or nothing, and whether it was compared with its source."""
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
    return next(_excess(row, change), "") or _other_figure(row, stored, source), True


def _other_figure(row: dict[str, Any], stored: UInt8, source: UInt8) -> str:
    """What of L-inf and PSNR is not what the record says."""
    for measure in (quality.linf, quality.psnr):
        value, name = measure(stored, source), measure.__name__
        recorded = row.get(name)
        if not math.isclose(value, math.inf if recorded is None else recorded, abs_tol=FIGURES):
            return f"its {name} is {value}, recorded {recorded}"
    return ""


def _excess(row: dict[str, Any], change: Any) -> Iterator[str]:
    """Changes above the bound, in grey levels: both layers' inside the recorded face boxes, layer 1's elsewhere."""
    settings = (layer_settings(row[name]) if row.get(name) else None for name in LAYERS)
    first, second = (found["eta"] if found else 0.0 for found in settings)
    bound = np.full(change.shape, first)
    for face in row.get("faces") or []:
        x0, y0, x1, y1 = (max(0.0, v) for v in face["box"])
        bound[int(y0) : int(np.ceil(y1)) + 1, int(x0) : int(np.ceil(x1)) + 1] = first + second
    over = change / 255 - bound
    if over.max(initial=0) > SLACK:
        y, x = np.unravel_index(int(over.argmax()), over.shape)
        yield f"changed by {change[y, x]}/255 at x {x}, y {y}, bound {bound[y, x] * 255:.1f}/255"


def _manifest_faults(storage: Storage, index: Index) -> list[str]:
    """What of both manifests is not what the records say: rows are compared by a digest of each."""
    wanted: dict[str, set[bytes]] = {key: set() for key in FILES}
    for photos, identity in merged(storage, index):
        for key, rows in ((PHOTOS_KEY, photos), (IDENTITIES_KEY, [identity])):
            wanted[key] |= _digests(table(rows, FILES[key]))
    faults = []
    for key, digests in wanted.items():
        try:
            file = parquet(storage.get(key), FILES[key])
            found = set().union(*map(_digests, file.iter_batches(GROUP)))
        except NotFoundError:
            faults += [f"{key}: is missing; run `dladiff finalise`"] if index.rows() else []
        except NO_PARQUET as error:
            faults.append(f"{key}: cannot be read ({type(error).__name__}); run `dladiff finalise`")
        else:
            if count := max(len(digests - found), len(found - digests)):
                faults.append(f"{key}: {count} rows are not what the records say; run `dladiff finalise`")
    return faults


def _digests(rows: pa.Table | pa.RecordBatch) -> set[bytes]:
    """A digest of each row."""
    texts = (json.dumps(row, sort_keys=True, default=str) for row in rows.to_pylist())
    return {hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16] for text in texts}


def _source(row: dict[str, Any], sources: Originals) -> Any:
    """The source's pixels; None when it is gone, outside, unreadable or no longer the photo that was protected."""
    try:
        data = sources.read(row["source_uri"])
        if hashlib.sha256(data).hexdigest() != row["source_sha256"]:
            return None
        return decode(data, max_pixels=row["width"] * row["height"], min_side=1).pixels
    except (PhotoError, StorageError):
        return None
