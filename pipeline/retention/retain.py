"""Retention: delete what the owner's rule names. Nothing is deleted without a rule; the input is never changed."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
from pydantic import Field

from dladiff.errors import ConfigError, DamagedError, NotFoundError, StorageError
from dladiff.settings.validate import Settings
from pipeline.config import RunConfig
from pipeline.process.private import chosen_umask, private_files
from pipeline.records import commit as records
from pipeline.records import manifest
from pipeline.records.checked import DELETED
from pipeline.records.commit import Recorded, load, read_index
from pipeline.records.lease import Lease
from pipeline.records.schema import PLAN, parquet
from pipeline.records.trace import traces_of
from pipeline.retention.forget import People, forget
from pipeline.retention.leftovers import OWNED, Held, held, sweep
from pipeline.run.plan import LATEST, identities
from pipeline.storage.base import FOLDERS, TEMP_PREFIX, Storage
from pipeline.storage.keys import escape, shown
from pipeline.storage.open import open_storage

OUTPUTS = ("output_uri", "output_key", "output_sha256")
MAX_UNATTENDED = 0.5  # largest share of the recorded identities that an unattended run deletes


class Retention(Settings):
    """What is to be deleted."""

    gone: bool = False
    """What is stored of identities whose originals left the input."""
    protected_days: int = Field(default=0, ge=0)
    """Protected photos this many days after they were made; 0: never."""
    records: Literal["delete", "keep"] = "delete"
    """What becomes of the records of identities that left: delete, or keep (without the photos)."""

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if not self.gone and self.protected_days == 0:
            yield "gone: nothing is to be deleted; give gone (--gone) or protected_days (--older-than DAYS)"


@dataclass(frozen=True, kw_only=True)
class Due:
    """One identity with something to delete."""

    identity: str
    why: str
    photos: int
    bytes: int
    forgotten: bool
    """Whether its records are deleted too."""

    def line(self) -> str:
        """Return who, why and how much, for a message."""
        records = "with its records" if self.forgotten else "its record stays"
        return f"{shown(self.identity)}: {self.why}; {self.photos} photos, {self.bytes / 1e6:.1f} MB, {records}"


@dataclass(frozen=True, kw_only=True)
class Retained:
    """What was deleted or would be deleted."""

    due: list[Due]
    outside: list[str]
    """Addresses of pages and evaluation results that show the identities."""
    missed: list[str]
    """Pages and results that were not reached, a line each that says what to do."""


def retain(
    output: str,
    rule: Retention,
    config: RunConfig | None = None,
    *,
    really: bool = False,
    unattended: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Retained:
    """Return what `rule` deletes from an output; with `really`, delete it and build the manifests.

    `config` names the input, which is listed to find who left. Without it only age counts and all records stay, since
    a task without a record would be done again. `unattended` refuses to delete if more than MAX_UNATTENDED left.
    Raises ConfigError for a rule or input that cannot be right; StorageError, also when another run holds the lease.
    """
    if rule.gone and config is None:
        raise ConfigError(["--gone: needs the input (--input URI, or --config FILE): who is not there has left"])
    storage = open_storage(output)
    if not really:
        found = _find(storage, rule, config, unattended, now())
        outside = forget(storage, found.people(rule), really=False)
        return Retained(due=found.due, outside=outside.deleted, missed=outside.missed)
    storage = open_storage(output, s3=config.s3 if config else None)
    with private_files(config.umask if config else chosen_umask()), Lease(storage) as lease:
        found = _find(storage, rule, config, unattended, now())
        outside = forget(storage, found.people(rule), really=True)
        if found.due:
            _delete(storage, (entry.key for entry in storage.list("report/")))  # it may show their pictures
        if found.present is not None and rule.records == "delete":
            _forget_plans(storage, found.present)
        for one in found.due:
            lease.check()
            _remove(storage, one, found, now())
        lease.check()
        manifest.write_manifest(storage, force=bool(found.due))
        left = sweep(storage, (*(f"{folder}/" for folder in FOLDERS), TEMP_PREFIX)) if rule.gone else []
    return Retained(due=found.due, outside=outside.deleted, missed=outside.missed + left)


@dataclass(frozen=True)
class _Found:
    """Identities with something to delete, all records, all stored files, and the input's names if it was listed."""

    due: list[Due]
    rows: dict[str, list[Recorded]]
    held: dict[str, Held]
    folders: dict[str, str]
    """Identity to escaped name."""
    present: set[str] | None

    def people(self, rule: Retention) -> People:
        """Return the people whose pages and results are to be deleted."""
        return People(self.present if rule.gone else None, {one.identity for one in self.due})


def _find(storage: Storage, rule: Retention, config: RunConfig | None, unattended: bool, now: datetime) -> _Found:
    rows: dict[str, list[Recorded]] = defaultdict(list)
    index = read_index(storage)
    if index.damaged:
        raise StorageError(min(index.damaged.values()))  # it may be of any identity
    for row in index.rows():
        rows[row.identity].append(row)
    present, here = None, None
    if config is not None:
        present = {identity.name for identity in identities(config, storage, whole=True)}
        here = set(map(escape, present))
    stored = held(storage, here)
    known = {escape(name): name for name in rows}
    known |= {folder: _name(folder) for folder in stored.keys() - known.keys()}
    gone = known.keys() - here if here is not None else set()
    if config is not None:
        _refuse_doubtful(len(gone), len(known), config, unattended)
    limit, due = now - timedelta(days=rule.protected_days), []
    for folder, name in sorted(known.items(), key=lambda pair: pair[1]):
        finished, one = _finished(rows.get(name, [])), stored[folder]
        left, old = rule.gone and folder in gone, rule.protected_days > 0 and finished is not None and finished <= limit
        forgotten = folder in gone and rule.records == "delete"
        if (left or old) and (forgotten or one.photos or _pictures(one)):
            why = f"protected on {finished:%Y-%m-%d}" if finished and not left else "left the input"
            due.append(Due(identity=name, why=why, photos=one.photos, bytes=one.bytes, forgotten=forgotten))
    return _Found(due, rows, stored, {name: folder for folder, name in known.items()}, present)


def _name(folder: str) -> str:
    """Return the name of an escaped one; a shortened name is returned as it is."""
    name = unquote(folder, errors="surrogateescape")
    return name if escape(name) == folder else folder


def _pictures(one: Held) -> list[str]:
    """Return the keys that are deleted even if records stay."""
    return [key for key in one.keys if key.startswith(("photos/", "traces/"))]


def _refuse_doubtful(gone: int, recorded: int, config: RunConfig, unattended: bool) -> None:
    """Raise ConfigError if too many left: the input may be the wrong one, or not mounted."""
    where = shown(config.input)
    if recorded and gone == recorded:
        raise ConfigError(
            [f"retention: none of {recorded} recorded identities is in {where}; give this output's input and layout"]
        )
    if unattended and gone > MAX_UNATTENDED * recorded:
        raise ConfigError(
            [
                f"retention: {gone} of {recorded} recorded identities are not in {where}: too many for an "
                f"unattended run; nothing is deleted, `dladiff retention --gone` lists them, --yes deletes"
            ]
        )


def _finished(rows: list[Recorded]) -> datetime | None:
    """Return when the newest part of an identity was done, None if no part was."""
    ends = [row.finished_at for row in rows if row.place.startswith("done/") and row.finished_at]
    return max(map(datetime.fromisoformat, ends), default=None)


def _remove(storage: Storage, one: Due, found: _Found, now: datetime) -> None:
    """Delete one identity's files; those that a rerun looks for last, so an interrupted run can be repeated."""
    rows, own = found.rows.get(one.identity, []), found.held[found.folders[one.identity]]
    if one.forgotten:
        keys = [*own.keys, *(row.place for row in rows)]
        for folder in OWNED:
            _delete(storage, dict.fromkeys(key for key in keys if key.startswith(f"{folder}/")))
        return
    for row in rows:
        _strip(storage, row, now)
    _delete(storage, traces_of(storage, one.identity))
    _delete(storage, (entry.key for entry in storage.list(f"photos/{found.folders[one.identity]}/")))
    _delete(storage, _pictures(own))


def _strip(storage: Storage, row: Recorded, now: datetime) -> None:
    """Remove the photos from a commit record, which still shows that the task is done."""
    if not row.place.startswith("done/"):
        return
    record = load(storage, row.place)
    note = f"the protected photo was deleted on {now:%Y-%m-%d}, {DELETED}"
    for photo in record["photos"]:
        if photo.get("output_key"):
            photo |= dict.fromkeys(OUTPUTS)
            photo["reason"] = "; ".join(text for text in (photo.get("reason"), note) if text)
    storage.put(row.place, json.dumps(record, indent=1, allow_nan=False).encode(), records.JSON)


def _forget_plans(storage: Storage, present: set[str]) -> None:
    """Delete all plans but the latest, and from that the people who left; `status` reads it."""
    latest = None
    with suppress(NotFoundError, DamagedError):
        latest = load(storage, LATEST).get("plan")
    plans = [entry.key for entry in storage.list("plan/") if entry.key != LATEST]
    _delete(storage, (key for key in plans if key != latest))
    if latest in plans:
        try:
            rows = parquet(storage.get(latest)).read().to_pylist()
            kept = [row for row in rows if row["identity"] in present]
        except (pa.ArrowException, KeyError):
            storage.delete(latest)  # damaged: the next run writes a new one
            return
        if len(kept) < len(rows):
            manifest.write_rows(storage, latest, kept, PLAN)


def _delete(storage: Storage, keys: Iterable[str]) -> None:
    """Delete keys in parallel."""
    with ThreadPoolExecutor(records.READERS) as pool:
        list(pool.map(storage.delete, keys))
