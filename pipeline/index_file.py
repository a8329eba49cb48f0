"""Index files: a CSV or Parquet table that names each photo and the identity on it, as the input of a run."""

import contextlib
import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from dladiff.errors import BusyError, ConfigError, StorageError
from pipeline.names import key_fault, shown
from pipeline.sources import Identity, identities
from pipeline.spool import Listed, Spool, blob, text
from pipeline.storage import Storage, open_storage

T = TypeVar("T")

EXTENSIONS = (".csv", ".parquet")
COLUMNS = ("identity", "uri")
ROLES = {"": "B", "protect": "B", "clean": "A", "ignore": "C"}  # to the marks of the spool
MISSING = "missing"  # tag of a photo that is not there: it fails by itself, when it is read
SHOWN_FAULTS = 5
PAGE = 1000  # keys in one reply of S3 to a listing
S3 = "s3://"

Record = tuple[int, str, str, str]  # row number, identity, uri, role


def is_index(uri: str) -> bool:
    """Return whether an input is an index file, by its extension."""
    return uri.lower().endswith(EXTENSIONS)


def index_identities(uri: str) -> Iterator[Identity]:
    """Yield the identities of an index file (a path, file:// or s3://), sorted by name, photos sorted by URI.

    Columns identity, uri (relative to the index's folder, or absolute) and, optional, role: protect, clean or
    ignore. Only what is named is looked at, for its tag and size; a photo that is not there, or cannot be looked at,
    has the tag "missing". A photo's key is its name in its folder. Raises ConfigError for faults of the file, at most
    five of them listed, and StorageError, where S3 is out of reach or not one photo can be looked at.
    """
    name = uri.rpartition("/")[2]
    storage = open_storage(uri.removesuffix(name) or ".")
    name = unquote(name) if uri.startswith("file://") else name
    with Spool() as spool:
        with _opened(storage, name) as handle:
            read = _parquet if name.lower().endswith(".parquet") else _csv
            _fill(spool, read(handle, shown(storage.uri_of(name))), storage.uri, shown(storage.uri_of(name)))
        spool.execute("DELETE FROM photo WHERE mark = 'C'")
        _look_up(spool)
        yield from identities(spool.rows(), str)


class _Faults:
    """Faults of a file: the first few are kept, the others counted."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.first: list[str] = []
        self.more = 0

    def add(self, fault: str) -> None:
        if len(self.first) < SHOWN_FAULTS:
            self.first.append(f"{self.where}, {fault}")
        else:
            self.more += 1

    def raise_any(self) -> None:
        if self.first:
            raise ConfigError(self.first + ([f"{self.where}: {self.more} more faults"] if self.more else []))


def _fill(spool: Spool, records: Iterator[Record], base: str, where: str) -> None:
    """Spool the records, each photo once. Raises ConfigError when any is faulty or two contradict each other."""
    faults = _Faults(where)
    spool.add(_rows(records, base, faults))
    faults.raise_any()
    spool.execute("CREATE INDEX by_uri ON photo (uri, name, mark)")
    twice = "SELECT uri, min({0}), max({0}) FROM photo GROUP BY uri HAVING min({0}) <> max({0})"
    for uri, one, other in spool.execute(twice.format("name")):
        faults.add(f"uri {shown(text(uri))}: is listed for {shown(text(one))!r} and for {shown(text(other))!r}")
    for uri, *_ in spool.execute(twice.format("mark")):
        faults.add(f"uri {shown(text(uri))}: is listed with two roles")
    faults.raise_any()
    spool.execute(
        "DELETE FROM photo WHERE EXISTS"
        " (SELECT 1 FROM photo AS other WHERE other.uri = photo.uri AND other.rowid < photo.rowid)"
    )


def _rows(records: Iterator[Record], base: str, faults: _Faults) -> Iterator[Listed]:
    for number, identity, uri, role in records:
        address, fault = _address(uri, base)
        if not identity.strip():
            faults.add(f"row {number}: identity is empty")
        elif not uri.strip():
            faults.add(f"row {number}: uri is empty")
        elif role.strip() not in ROLES:
            faults.add(f"row {number}: role {shown(role)!r} is unknown; use protect, clean or ignore")
        elif fault:
            faults.add(f"row {number}: uri {shown(uri)!r} is refused: {fault}")
        else:
            yield Listed(identity, ROLES[role.strip()], address.rpartition("/")[2], 0, MISSING, address)


def _address(uri: str, base: str) -> tuple[str, str | None]:
    """The absolute address of a photo, and why it is refused, if it is."""
    if uri.startswith(S3):
        bucket, _, key = uri.removeprefix(S3).partition("/")
        return uri, key_fault(key) if bucket else "it names no bucket"
    if uri.startswith("file://"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            return uri, "it names another host"
        uri = unquote(uri.removeprefix("file://").removeprefix(parts.netloc))
    elif "://" in uri and not uri.startswith("/"):
        return uri, "its scheme is unknown; use a path, file:// or s3://"
    if uri.startswith("/"):
        return uri, key_fault(uri[1:])
    relative = uri.removeprefix("./")
    return f"{base.rstrip('/')}/{relative}", key_fault(relative)


def _look_up(spool: Spool) -> None:
    """Give each photo that is there its size and tag; what one row names wrongly is that row's fault alone."""
    spool.function("folder", lambda uri: uri.rpartition("/")[0])
    spool.execute("CREATE TABLE place AS SELECT folder(uri) AS folder, count(*) AS named FROM photo GROUP BY 1")
    buckets: dict[str, Storage] = {}
    first: StorageError | None = None
    for folder, named in spool.execute("SELECT folder, named FROM place ORDER BY folder"):
        try:
            _look_into(spool, text(folder), named, buckets)
        except BusyError:  # the next run finds it: no row's fault
            raise
        except StorageError as error:
            first = first or error
    if first and not spool.holds("SELECT 1 FROM photo WHERE tag <> ?", blob(MISSING)):
        raise first  # wrong credentials, say


def _look_into(spool: Spool, folder: str, named: int, buckets: dict[str, Storage]) -> None:
    if not folder.startswith(S3):
        _look_at_files(spool, folder)
        return
    bucket, _, path = folder.removeprefix(S3).partition("/")
    if bucket not in buckets:  # one client a bucket: making one takes longer than listing a folder
        buckets[bucket] = open_storage(S3 + bucket)
    _look_at_objects(spool, folder, f"{path}/" if path else "", named, buckets[bucket])


def _look_at_files(spool: Spool, folder: str) -> None:
    """One stat a photo: whatever else lies in the folder, or below it, is nobody's business."""
    try:
        storage = open_storage(folder or "/")
    except (StorageError, RuntimeError):  # RuntimeError: a link to itself
        return
    for uri in _sought(spool, folder):
        with contextlib.suppress(StorageError):  # not to be read: it is told when it is read
            if tag := storage.tag(uri.rpartition("/")[2]):
                _note(spool, uri, int(tag.partition("-")[0]), tag)


def _look_at_objects(spool: Spool, folder: str, prefix: str, named: int, storage: Storage) -> None:
    """List a folder of a bucket, which also lists what lies below it: for as many pages as it has photos at most.

    Whoever was not met by then is asked for alone, so that neither many photos nor a large bucket cost many requests.
    """
    seen = found = 0
    for entry in islice(storage.list(prefix, tell=False), named * PAGE):
        seen += 1
        name = entry.key.removeprefix(prefix)
        found += 0 if "/" in name else _note(spool, f"{folder}/{name}", entry.size, entry.tag)
        if found == named:
            return
    if seen < named * PAGE:
        return
    for uri in _sought(spool, folder):
        key = prefix + uri.rpartition("/")[2]
        for entry in islice(storage.list(key, tell=False), PAGE):  # a request for the object itself tells no size
            if entry.key == key:
                _note(spool, uri, entry.size, entry.tag)
                break


def _sought(spool: Spool, folder: str) -> Iterator[str]:
    """Photos directly in a folder that nobody has met yet; "0" comes after "/"."""
    rows = "SELECT uri FROM photo WHERE uri > ? AND uri < ? AND folder(uri) = ? AND tag = ?"
    for (uri,) in spool.execute(rows, blob(f"{folder}/"), blob(f"{folder}0"), blob(folder), blob(MISSING)):
        yield text(uri)


def _note(spool: Spool, uri: str, size: int, tag: str) -> int:
    """Give a photo its size and tag; return 0 where the index names no such photo."""
    found = "UPDATE photo SET size = ?, tag = ? WHERE uri = ? AND tag = ?"
    return spool.execute(found, size, blob(tag), blob(uri), blob(MISSING)).rowcount


def _opened(storage: Storage, name: str) -> BinaryIO:
    """The file for reading: a local one is streamed, an object of S3 is held whole."""
    if storage.uri.startswith(S3):
        return io.BytesIO(storage.get(name))
    path = Path(storage.uri_of(name))
    try:
        return path.open("rb")
    except OSError as error:
        raise StorageError(f"cannot read {shown(str(path))}: {error.strerror}; check --input") from error


def _columns(found: Sequence[str], where: str) -> list[int | None]:
    """Places of the columns identity, uri and role; only the last may be absent."""
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        names = ", ".join(shown(name[:80]) for name in found[:20]) or "none"
        raise ConfigError([f"{where}: column {' and '.join(missing)} is missing; found: {names}"])
    return [found.index(name) if name in found else None for name in (*COLUMNS, "role")]


def _csv(handle: BinaryIO, where: str) -> Iterator[Record]:
    """Records of a CSV file; the header is row 1."""
    with io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            places = _columns([name.strip() for name in next(reader, [])], where)
            for number, fields in enumerate(reader, 2):
                if fields:
                    values = ["" if p is None or p >= len(fields) else fields[p] for p in places]
                    yield number, values[0], values[1], values[2]
        except csv.Error as error:
            raise ConfigError([f"{where}, line {reader.line_num}: not CSV ({error}); save it as CSV UTF-8"]) from error
        except UnicodeDecodeError as error:
            place = f"{where}, after line {reader.line_num}"
            raise ConfigError([f"{place}: not UTF-8; save it as CSV UTF-8"]) from error


def _parquet(handle: BinaryIO, where: str) -> Iterator[Record]:
    """Records of a Parquet file; the first is row 1."""
    import pyarrow.parquet as pq

    file = _read(lambda: pq.ParquetFile(handle), where)
    names: list[str] = file.schema_arrow.names
    columns = [names[place] if place is not None else None for place in _columns(names, where)]
    batches = _read(lambda: file.iter_batches(columns=[name for name in columns if name]), where)
    number = 0
    while (batch := _read(lambda: next(batches, None), where)) is not None:
        empty = [None] * batch.num_rows
        values = [batch.column(name).to_pylist() if name else empty for name in columns]
        for identity, uri, role in zip(*values, strict=True):
            number += 1
            yield number, _text(identity), _text(uri), _text(role)


def _read(step: Callable[[], T], where: str) -> T:
    """Run a step of reading Parquet; pyarrow's errors are ValueError and OSError."""
    try:
        return step()
    except (ValueError, OSError) as error:
        reason = shown(" ".join(str(error).split())[:200])
        raise ConfigError([f"{where}: not a Parquet file that can be read: {reason}; write it again"]) from error


def _text(value: object) -> str:
    """The text of a cell: whole numbers are names too, None and NaN are empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)
