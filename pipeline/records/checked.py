"""Checks of records read from an output before they are used. Anyone who can write the output can forge them."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa

from pipeline.records.schema import IDENTITIES, PHOTOS
from pipeline.storage.keys import escape, is_utf8, key_fault, task_name
from pipeline.telemetry.metrics import PHOTO_STATUSES

STATUSES = ("done", "failed", "quarantined")  # of a record
IDENTITY_STATUSES = (*STATUSES, "partial")
NO_PHOTO = ("failed", "skipped")  # photo statuses without a stored photo
DELETED = "as retention asks"  # part of the reason of a photo that retention deleted
LAYERS = ("finetuning_layer", "zero_shot_layer", "joint_layers")
MAX_NUMBER = 1e12  # largest measurement, in any unit: sums stay finite and hundredths exact
HEAD: dict[str, pa.DataType] = {
    **dict.fromkeys(("identity", "key", "status", "reason"), pa.string()),
    **dict.fromkeys(("part", "parts", "attempts"), pa.int32()),
}

StoredRow = Mapping[str, Any]
"""A row of a record or manifest, as read from storage."""


Check = Callable[[Any], bool]


def fits(value: object, kind: pa.DataType) -> bool:
    """Return whether a value of JSON or Parquet can stand in a column of a type; None can, NaN and infinity cannot."""
    return value is None or _check_of(kind)(value)


@lru_cache(maxsize=256)
def _check_of(kind: pa.DataType) -> Check:
    """Return what tells whether a value that is not None is of a type; made once, since Arrow's types are slow."""
    if pa.types.is_list(kind):
        item = _check_of(kind.value_type)
        return lambda value: isinstance(value, list) and all(v is not None and item(v) for v in value)
    if pa.types.is_struct(kind):
        fields = [(field.name, _check_of(field.type)) for field in kind]
        return lambda value: isinstance(value, dict) and _fit(value, fields)
    if pa.types.is_map(kind):
        item, empty = _check_of(kind.item_type), pa.types.is_string(kind.item_type)
        return lambda value: _fits_map(value, item, empty)
    if pa.types.is_integer(kind):
        most = 2 ** (kind.bit_width - 1)
        return lambda value: isinstance(value, int) and not isinstance(value, bool) and -most <= value < most
    if pa.types.is_string(kind):
        return lambda value: isinstance(value, str) and is_utf8(value)
    if pa.types.is_timestamp(kind):
        return lambda value: _moment(value) is not None
    return _is_number if pa.types.is_floating(kind) else lambda value: isinstance(value, bool)


def _fit(row: StoredRow, fields: Iterable[tuple[str, Check]]) -> bool:
    return all((value := row.get(name)) is None or check(value) for name, check in fields)


def _misfit(row: StoredRow, fields: Iterable[tuple[str, Check]]) -> str:
    return next(name for name, check in fields if row.get(name) is not None and not check(row[name]))


def _fits_map(value: object, item: Check, empty: bool) -> bool:
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = dict(value)  # Arrow's form of a map
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(name, str) and is_utf8(name) and (empty if v is None else item(v)) for name, v in value.items()
    )


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= MAX_NUMBER  # type: ignore[arg-type]  # False for NaN


def _moment(value: object) -> datetime | None:
    """Return a time with its zone, from ISO 8601 text or a datetime; None for anything else."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return found if isinstance(found, datetime) and found.tzinfo is not None else None


PHOTO, IDENTITY = ([(f.name, _check_of(f.type)) for f in schema] for schema in (PHOTOS, IDENTITIES))
"""Columns of a photo's and of an identity's row, and what their values must pass."""


def is_own(identity: str, key: str) -> bool:
    """Return whether a storage key names a photo in the identity's own folder of an output."""
    folder, _, name = key.rpartition("/")
    return folder == f"photos/{escape(identity)}" and key_fault(name) is None


@lru_cache(maxsize=256)
def layer_settings(text: str) -> dict[str, Any] | None:
    """Return the settings of a layer from a photo row's JSON, None when they are invalid.

    `eta` is in [0, 1] units. Values are numbers, text, or lists and objects of these.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    eta = found.get("eta") if isinstance(found, dict) else None
    good = isinstance(eta, int | float) and not isinstance(eta, bool) and 0 <= eta <= 1
    return found if good and _is_shallow(found, 3) else None


def _is_shallow(value: object, levels: int) -> bool:
    """Return whether lists and objects are nested at most `levels` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not inner or (levels > 0 and all(_is_shallow(v, levels - 1) for v in inner))


def photo_fault(row: object, identity: str | None = None) -> str:
    """Return what is wrong with a photo's row, "" for nothing. `identity` is the record's identity, if known."""
    if not isinstance(row, dict):
        return "a photo's row is no JSON object"
    if not _fit(row, PHOTO):
        return f"{_misfit(row, PHOTO)} of a photo is of another type"
    name = row.get("identity", identity)
    if name is None or (identity is not None and name != identity):
        return "a photo is of another identity"
    if not row.get("source_uri") or row.get("status") not in PHOTO_STATUSES:
        return "a photo has no source_uri or no known status"
    if fault := _parts_fault(row):
        return fault
    if row.get("output_key") and not is_own(name, row["output_key"]):
        return "a photo names a file outside of its identity's folder"
    return ""


def shared_fault(values: object) -> str:
    """Return what is wrong with columns that the rows of several photos share, "" for nothing."""
    if not isinstance(values, dict):
        return "they are no JSON object"
    if not _fit(values, PHOTO):
        return f"{_misfit(values, PHOTO)} is of another type"
    return _parts_fault(values)


def _parts_fault(row: StoredRow) -> str:
    """Return what is wrong with the similarities, faces and settings of a photo's row, "" for nothing."""
    if any(s.get("encoder") is None or s.get("optimised") is None for s in row.get("similarity") or []):
        return "a similarity of a photo has no encoder"
    if any(len(face.get("box") or ()) != 4 for face in row.get("faces") or []):
        return "a face of a photo has no box of four numbers"
    if row.get("geometry") is not None and len(row["geometry"].get("box") or ()) != 4:
        return "the geometry of a photo has no box of four numbers"
    if any(row.get(layer) is not None and layer_settings(row[layer]) is None for layer in LAYERS):
        return "the settings of a photo's layers cannot be read"
    return ""


def stored_fault(row: StoredRow) -> str:
    """Return why a photo's row does not describe its stored file, "" when it does or when the photo has no file."""
    if not row.get("output_key"):
        lost = row["status"] in NO_PHOTO or DELETED in (row.get("reason") or "")
        return "" if lost else "counts as protected and names no file"
    if not all(row.get(name) for name in ("output_sha256", "source_sha256", "width", "height")):
        return "has no recorded checksum or size"
    return "" if min(row["width"], row["height"]) > 0 else "has a recorded size below 1 px"


def incomplete(rows: Iterable[StoredRow]) -> int:
    """Return how many photos of a commit record are neither stored, failed nor deleted.

    A task with such photos is not done. Photos that were skipped because they were gone count too: a plan with the
    same key names them, so they exist again.
    """
    return sum(
        not row.get("output_key") and row["status"] != "failed" and DELETED not in (row.get("reason") or "")
        for row in rows
    )


def identity_fault(row: object, identity: str | None = None) -> str:
    """Return what is wrong with an identity's row, "" for nothing. `identity` is the record's identity, if known."""
    if not isinstance(row, dict):
        return "the identity's row is no JSON object"
    if not _fit(row, IDENTITY):
        return f"{_misfit(row, IDENTITY)} of the identity is of another type"
    if any(seconds < 0 for seconds in dict(row.get("seconds") or {}).values()):
        return "the identity has negative seconds"
    name = row.get("identity", identity)
    if name is None or (identity is not None and name != identity):
        return "the identity's row is of another identity"
    known = identity is not None and "status" not in row
    return "" if known or row.get("status") in IDENTITY_STATUSES else "the identity has no known status"


def record_fault(key: str, record: StoredRow) -> str:
    """Return what is wrong with the record at a storage key, "" for nothing."""
    for name, kind in HEAD.items():
        if not fits(record.get(name), kind) or (name in record and record[name] is None):
            return f"{name} is no {kind}"
    identity, part, rows = record.get("identity"), record.get("part", 0), record.get("photos", [])
    if identity is None or record.get("key") is None or record.get("status", "done") not in STATUSES:
        return "it has no identity, key or known status"
    if not 0 <= part <= record.get("parts", 1):
        return "its part is outside of its parts"
    if key.partition("/")[2] != f"{task_name(identity, part)}.json":
        return "its storage key names another identity or part"
    if not isinstance(rows, list):
        return "its photos are no list"
    fault = next(filter(None, (photo_fault(row, identity) for row in rows)), "")
    fault = fault or identity_fault(record.get("identity_row") or {}, identity)
    if fault:
        return fault
    if len({row["source_uri"] for row in rows}) < len(rows):
        return "it names a photo twice"
    return ""
