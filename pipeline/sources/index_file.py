"""Index files: a CSV, JSONL or Parquet table of photos and their identities, as the input of a run."""

import contextlib
import functools
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from dladiff.errors import BusyError, ConfigError, NotFoundError, StorageError
from pipeline.sources.addresses import OUTSIDE, S3, address_of, root_and_key, root_faults, roots_of
from pipeline.sources.cells import ROLES, Refused, bare
from pipeline.sources.find import Identity, identities, shard_identities
from pipeline.sources.index_formats import IndexRow, csv_records, json_records, parquet_records
from pipeline.sources.left_out import LeftOut
from pipeline.sources.shards import entry_of, open_parquet, photo_column
from pipeline.sources.spool import Listed, Spool, blob, text
from pipeline.storage.base import Storage
from pipeline.storage.keys import is_utf8, short, shown
from pipeline.storage.open import open_storage

READERS = {".csv": csv_records, ".jsonl": json_records, ".ndjson": json_records, ".parquet": parquet_records}
FILES = (*READERS, ".tar")  # an input that is one file
MISSING = "missing"  # tag of a photo that does not exist; it fails when it is read
REFUSED = "refused: "  # prefix of the tag of a photo whose address is refused; the reason follows
SHOWN_FAULTS = 5  # faults of one file that are listed; the others are counted
PAGE = 1000  # keys in one reply of S3 to a listing
FOLDERS_KNOWN = 4096  # folders whose check is cached: rows of one folder are usually adjacent

log = logging.getLogger(__name__)


def is_index(uri: str) -> bool:
    """Return whether an input is one file by its extension: an index, or a file that holds photos."""
    return uri.lower().endswith(FILES)


def index_identities(uri: str, allow_roots: Sequence[str] = (), left: LeftOut | None = None) -> Iterator[Identity]:
    """Yield the identities of an index file (a path, file:// or s3://), sorted by name, photos sorted by URI.

    Columns identity, uri (relative to the index's folder, or absolute) and, optional, role: protect, clean or
    ignore. Only the named photos are looked up, for tag and size. A photo that does not exist, or whose lookup fails,
    has the tag "missing". Malformed addresses, and local files outside of the index's folder and of `allow_roots`, get
    a tag that begins with "refused: ". Objects of any bucket may be named: the credentials are the limit. At most five
    refused rows are logged. A photo's key is its name in its folder. Raises ConfigError for faults of the file, listing
    at most five, and StorageError when S3 is out of reach or every lookup fails.
    """
    if faults := root_faults(allow_roots):
        raise ConfigError(faults)
    name = uri.rpartition("/")[2]
    storage = open_storage(uri.removesuffix(name) or ".")
    name = unquote(name) if uri.startswith("file://") else name
    if name.lower().endswith(".tar") or _holds_photos(storage, name):
        yield from shard_identities(storage, name, left or LeftOut())
        return
    where = _Where(shown(storage.uri_of(name)), storage.uri, roots_of(uri, allow_roots))
    with Spool() as spool:
        with _opened(storage, name) as handle:
            read = READERS[f".{name.lower().rpartition('.')[2]}"]
            _fill(spool, read(handle, where.index), where)
        spool.execute("DELETE FROM photo WHERE mark = 'C'")
        _look_up(spool, where)
        yield from identities(spool.rows(), str)


@dataclass(frozen=True)
class _Where:
    """The index as shown in messages, its folder, and the local folders that its rows may name."""

    index: str
    base: str
    roots: tuple[Path, ...]


class _Faults:
    """Faults of a file: the first SHOWN_FAULTS are kept, the others counted."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.first: list[str] = []
        self.more = 0

    def add(self, fault: str) -> None:
        if len(self.first) < SHOWN_FAULTS:
            self.first.append(f"{self.where}, {fault}")
        else:
            self.more += 1

    def lines(self) -> list[str]:
        return self.first + ([f"{self.where}: {self.more} more faults"] if self.more else [])

    def raise_any(self) -> None:
        if self.first:
            raise ConfigError(self.lines())

    def log_any(self) -> None:
        for line in self.lines():
            log.error("%s", line)


def _fill(spool: Spool, records: Iterator[IndexRow], where: _Where) -> None:
    """Spool the records, each photo once. Raises ConfigError for faulty or contradictory records."""
    faults, refused = _Faults(where.index), _Faults(where.index)
    spool.add(_rows(records, where, faults, refused))
    refused.log_any()
    faults.raise_any()
    spool.execute("CREATE INDEX by_uri ON photo (uri, name, mark)")
    twice = "SELECT uri, min({0}), max({0}) FROM photo GROUP BY uri HAVING min({0}) <> max({0})"
    for uri, one, other in spool.execute(twice.format("name")):
        faults.add(f"uri {short(text(uri))}: is listed for {short(text(one))!r} and for {short(text(other))!r}")
    for uri, *_ in spool.execute(twice.format("mark")):
        faults.add(f"uri {short(text(uri))}: is listed with two roles")
    faults.raise_any()
    spool.execute(
        "DELETE FROM photo WHERE EXISTS"
        " (SELECT 1 FROM photo AS other WHERE other.uri = photo.uri AND other.rowid < photo.rowid)"
    )


def _rows(records: Iterator[IndexRow], where: _Where, faults: _Faults, refused: _Faults) -> Iterator[Listed]:
    @functools.lru_cache(FOLDERS_KNOWN)
    def is_outside(folder: str) -> bool:
        return not folder.startswith(S3) and root_and_key(folder or "/", where.roots) is None

    for number, identity, uri, role in records:
        refused_cells = [
            f"row {number}: column {column} {cell}"
            for column, cell in (("identity", identity), ("uri", uri), ("role", role))
            if isinstance(cell, Refused)
        ]
        if refused_cells:
            faults.add(refused_cells[0])
        elif not identity.strip():
            faults.add(f"row {number}: identity is empty")
        elif not is_utf8(identity):
            faults.add(f"row {number}: identity {short(identity)!r} is not UTF-8")
        elif not uri.strip():
            faults.add(f"row {number}: uri is empty")
        elif (mark := ROLES.get(role.strip())) is None:
            faults.add(f"row {number}: role {short(role)!r} is unknown; use protect, clean or ignore")
        else:
            address, fault = address_of(uri, where.base)
            if not fault and is_outside(address.rpartition("/")[0]):
                fault = OUTSIDE
            tag = f"{REFUSED}{fault}" if fault else MISSING
            if fault and mark != ROLES["ignore"]:
                refused.add(f"row {number}: uri {short(uri)!r} is refused: {fault}")
                address = uri if short(uri) == uri else f"{short(uri)} (row {number})"  # short enough for a manifest
            yield Listed(identity, mark, address.rpartition("/")[2], 0, tag, address)


def _look_up(spool: Spool, where: _Where) -> None:
    """Set size and tag of each photo that exists. An error of one row does not affect the others."""
    spool.function("folder", lambda uri: uri.rpartition("/")[0])
    named = "SELECT folder(uri) AS folder, count(*) AS named FROM photo WHERE tag = ? GROUP BY 1"
    spool.execute(f"CREATE TABLE folders AS {named}", blob(MISSING))
    opened: dict[str, Storage] = {}  # one client a bucket: creating one takes longer than listing a folder
    refused = _Faults(where.index)
    first: StorageError | None = None
    for folder, count in spool.execute("SELECT folder, named FROM folders ORDER BY folder"):
        try:
            if text(folder).startswith(S3):
                _look_into(spool, text(folder), count, opened)
            else:
                _look_at_files(spool, text(folder), where.roots, opened, refused)
        except BusyError:  # temporary, and no fault of a row
            raise
        except StorageError as error:
            first = first or error
    refused.log_any()
    marks = blob(MISSING), len(REFUSED), blob(REFUSED)
    if first and not spool.holds("SELECT 1 FROM photo WHERE tag <> ? AND substr(tag, 1, ?) <> ?", *marks):
        raise first  # for example wrong credentials


def _look_into(spool: Spool, folder: str, named: int, opened: dict[str, Storage]) -> None:
    bucket, _, path = folder.removeprefix(S3).partition("/")
    if S3 + bucket not in opened:
        opened[S3 + bucket] = open_storage(S3 + bucket)
    _look_at_objects(spool, folder, f"{path}/" if path else "", named, opened[S3 + bucket])


def _look_at_files(
    spool: Spool, folder: str, roots: Sequence[Path], opened: dict[str, Storage], refused: _Faults
) -> None:
    """Set size and tag of the photos of a local folder with one stat each; the folder is not listed."""

    def tag_of(found: tuple[Path, str]) -> str | None:
        root, key = str(found[0]), found[1]
        if root not in opened:
            opened[root] = open_storage(root)
        return opened[root].tag(key)

    inside = root_and_key(folder or "/", roots)
    for uri in _sought(spool, folder):
        name, tag = uri.rpartition("/")[2], None
        try:
            tag = tag_of((inside[0], f"{inside[1]}/{name}".removeprefix("/"))) if inside else None
        except StorageError:  # a link out of this root, perhaps into another one; or unreadable
            found = root_and_key(uri, roots)
            if found is None:
                refused.add(f"uri {short(uri)!r} is refused: {OUTSIDE}")
                _note(spool, uri, 0, REFUSED + OUTSIDE)
            else:
                with contextlib.suppress(StorageError):  # unreadable: reading it reports the error
                    tag = tag_of(found)
        if tag:
            _note(spool, uri, int(tag.partition("-")[0]), tag)


def _look_at_objects(spool: Spool, folder: str, prefix: str, named: int, storage: Storage) -> None:
    """Set size and tag of the photos of a bucket folder, by listing it, with everything below it.

    At most one page is listed for each named photo; the remaining photos are looked up one by one. So neither many
    photos nor a large bucket cost many requests.
    """
    seen = found = 0
    for entry in islice(storage.list(prefix, log_skipped=False), named * PAGE):
        seen += 1
        name = entry.key.removeprefix(prefix)
        found += 0 if "/" in name else _note(spool, f"{folder}/{name}", entry.size, entry.tag)
        if found == named:
            return
    if seen < named * PAGE:
        return
    for uri in _sought(spool, folder):
        key = prefix + uri.rpartition("/")[2]
        for entry in islice(storage.list(key, log_skipped=False), PAGE):  # Storage.tag returns no size
            if entry.key == key:
                _note(spool, uri, entry.size, entry.tag)
                break


def _sought(spool: Spool, folder: str) -> Iterator[str]:
    """Yield the photos directly in a folder that have no tag yet; the character "0" follows "/"."""
    rows = "SELECT uri FROM photo WHERE uri > ? AND uri < ? AND folder(uri) = ? AND tag = ?"
    for (uri,) in spool.execute(rows, blob(f"{folder}/"), blob(f"{folder}0"), blob(folder), blob(MISSING)):
        yield text(uri)


def _note(spool: Spool, uri: str, size: int, tag: str) -> int:
    """Set size and tag of a photo; return 0 if the index names no such photo, else 1."""
    found = "UPDATE photo SET size = ?, tag = ? WHERE uri = ? AND tag = ?"
    return spool.execute(found, size, blob(tag), blob(uri), blob(MISSING)).rowcount


def _holds_photos(storage: Storage, name: str) -> bool:
    """Return whether a Parquet file has a column of photos, and no column `uri`."""
    if not name.lower().endswith(".parquet"):
        return False
    try:
        file = open_parquet(storage, entry_of(storage, name))
    except (ValueError, OSError, NotFoundError):  # the reader of an index says what is wrong
        return False
    return "uri" not in map(bare, file.schema_arrow.names) and photo_column(file) is not None


def _opened(storage: Storage, name: str) -> BinaryIO:
    """Open the index: a local file is streamed, an S3 object is read into memory."""
    if storage.uri.startswith(S3):
        return io.BytesIO(storage.get(name))
    path = Path(storage.uri_of(name))
    try:
        return path.open("rb")
    except OSError as error:
        raise StorageError(f"cannot read {shown(str(path))}: {error.strerror}; check --input") from error
