"""The stored form of records: what belongs to the run stands once, in files of settings that records name by digest.

In the program a record's photo rows are complete. `pack` moves the values that photos share: settings, models and
versions to files (`settings/<digest>.json`), the task's times to the record. `unpack` is its inverse. Records of
earlier versions have complete rows and no `settings`; they stay as they are.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from dladiff.errors import DamagedError, NotFoundError, TooLargeError
from pipeline.records.checked import LAYERS, shared_fault
from pipeline.storage.base import Storage

FOLDER = "settings/"
OF_SETTINGS = ("seed", "config_digest", "models", "versions", "device", *LAYERS)
OF_TASK = ("run_id", "identity", "seconds", "peak_memory_bytes", "started_at", "finished_at")
DIGITS = 32  # of the SHA-256 of a file of settings in its name
MAX_SETTINGS = 2**20  # bytes of a file of settings: they take some 3 kB
NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}")

_known: WeakKeyDictionary[Storage, dict[str, dict[str, Any]]] = WeakKeyDictionary()
"""Settings by digest that a storage holds, as read or written by this process."""

Values = Mapping[str, Any]


def pack(storage: Storage, record: Values) -> dict[str, Any]:
    """Return the stored form of a record; store the settings that its rows share. Raises StorageError."""
    digests: list[str] = []

    def without_settings(row: Values) -> dict[str, Any]:
        settings = {name: row[name] for name in OF_SETTINGS if name in row}
        digest = _put(storage, settings)
        if digest not in digests:
            digests.append(digest)
        return {name: value for name, value in row.items() if name not in settings} | {"of": digests.index(digest)}

    photos = [without_settings(row) for row in record.get("photos", [])]
    first = photos[0] if photos else {}
    common = {n: first[n] for n in OF_TASK if n in first and all(n in row and row[n] == first[n] for row in photos)}
    base = _base(photos)
    kept_out = {*common, *(("output_uri",) if base else ())}
    rows = [{name: value for name, value in row.items() if name not in kept_out} for row in photos]
    packed = dict(record) | {"photos": rows, "common": common, "output": base, "settings": digests}
    if record.get("identity_row"):
        about = without_settings(record["identity_row"])
        if all(name in about and about[name] == value for name, value in common.items()):
            about = {name: value for name, value in about.items() if name not in common} | {"alike": True}
        packed["identity_row"] = about
    return packed


def unpack(storage: Storage, record: Values) -> dict[str, Any]:
    """Return a record with complete rows; its own fields must be checked. Raises DamagedError, StorageError."""
    if "settings" not in record:
        return dict(record)  # of an earlier version
    digests, common, base = record["settings"], record.get("common", {}), record.get("output", "")
    if not isinstance(digests, list) or not isinstance(base, str):
        raise DamagedError("its settings are no list, or its output is no address")
    if fault := shared_fault(common):
        raise DamagedError(f"its common values cannot be used: {fault}")
    shared = [_get(storage, digest) for digest in digests]

    def complete(row: Values, more: Values) -> dict[str, Any]:
        number = row.get("of")
        if type(number) is not int or not 0 <= number < len(shared):
            raise DamagedError("a row names no settings")
        own = {name: value for name, value in row.items() if name not in ("of", "alike")}
        whole: dict[str, Any] = {**shared[number], **more, **own}
        if base and whole.get("output_key") and "output_uri" not in row:
            whole["output_uri"] = f"{base}/{whole['output_key']}"
        return whole

    photos = [complete(row, common) for row in record.get("photos", [])]
    whole = {n: value for n, value in record.items() if n not in ("settings", "common", "output")} | {"photos": photos}
    if record.get("identity_row"):
        about = record["identity_row"]
        whole["identity_row"] = complete(about, common if about.get("alike") else {})
    return whole


def _base(photos: list[dict[str, Any]]) -> str:
    """Return the address of the output if it and the photos' keys are all their addresses, "" if not."""
    stored = [row for row in photos if row.get("output_key")]
    bases = {str(row.get("output_uri")).removesuffix(f"/{row['output_key']}") for row in stored}
    base = bases.pop() if len(bases) == 1 else ""
    return base if all(row.get("output_uri") == f"{base}/{row['output_key']}" for row in stored) else ""


def _put(storage: Storage, settings: Values) -> str:
    """Store settings unless the storage has them; return their digest."""
    data = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(data).hexdigest()[:DIGITS]
    known = _known.setdefault(storage, {})
    if digest not in known:
        key = f"{FOLDER}{digest}.json"
        if not storage.put_if_absent(key, data) and not _holds(storage, key, data):
            storage.put(key, data)  # what was there was changed or damaged
        known[digest] = dict(settings)
    return digest


def _holds(storage: Storage, key: str, data: bytes) -> bool:
    try:
        return storage.get(key, MAX_SETTINGS) == data
    except (NotFoundError, TooLargeError):
        return False


def _get(storage: Storage, digest: object) -> dict[str, Any]:
    """Return settings by digest; their content must have it. Raises DamagedError, StorageError."""
    if not isinstance(digest, str) or not NAME.fullmatch(digest):
        raise DamagedError("its settings have no digest")
    known = _known.setdefault(storage, {})
    if digest not in known:
        key = f"{FOLDER}{digest}.json"
        try:
            data = storage.get(key, MAX_SETTINGS)
            settings = json.loads(data) if hashlib.sha256(data).hexdigest().startswith(digest) else None
        except (NotFoundError, TooLargeError, ValueError, RecursionError):
            settings = None
        if settings is None or shared_fault(settings):
            raise DamagedError(f"its settings, {storage.uri_of(key)}, are missing or were changed")
        known[digest] = settings
    return known[digest]
