"""Photos inside of files: rows of Parquet files and members of tar files, read in place by ranges.

The address of a photo is FILE.parquet#row=N (the first row is 0) or FILE.tar#member=NAME.
"""

import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, TypeVar

from dladiff.errors import DladiffError, NotFoundError, PhotoError, StorageError
from pipeline.sources.left_out import LeftOut
from pipeline.storage.base import Entry, Storage, too_large
from pipeline.storage.keys import key_fault, short, shown
from pipeline.storage.open import open_storage

T = TypeVar("T")

ROW = re.compile(r"(?s)(.+?\.parquet)#row=([0-9]{1,18})", re.IGNORECASE)
MEMBER = re.compile(r"(?s)(.+?\.tar)#member=(.+)", re.IGNORECASE)
BLOCK = 1 << 20  # least bytes of one read: headers of a tar and pages of a Parquet file are small
MAX_HEADER = 1 << 24  # bytes of one header of a tar: names and attributes
MAX_CHUNK = 1 << 31  # bytes of the photos of one row group, as its footer gives them
CACHED = 1 << 28  # bytes of the photos of a row group that are kept for the next row; larger ones are streamed
STREAMED = 8  # rows read at a time of a larger row group
MAX_MEMBERS = 10_000_000  # of one tar
NAMES = ("image", "img", "photo", "picture", "jpg", "jpeg", "png", "image_bytes")
"""Columns of photos, the first that is there."""


class Ranged(io.RawIOBase):
    """A stored file, read by ranges. A read of more than `most` bytes raises OSError: a header may declare anything."""

    def __init__(self, storage: Storage, entry: Entry, most: int) -> None:
        self._storage, self._entry, self._most = storage, entry, most
        self._at, self._start, self._block = 0, 0, b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer at the end."""
        rest = max(0, self._entry.size - self._at)
        if size > self._most or (size < 0 and rest > self._most):
            raise OSError(f"a part of it claims {size} bytes, more than {self._most}")
        size = rest if size < 0 else min(size, rest)
        skip = self._at - self._start
        if size and not 0 <= skip <= len(self._block) - size:
            length = min(rest, max(size, BLOCK))
            self._block, self._start, skip = self._storage.part(self._entry.key, self._at, length), self._at, 0
        data = self._block[skip : skip + size]
        self._at += len(data)
        return data


def split(address: str) -> tuple[str, str] | None:
    """Return the file of an address and the row or member in it, None for the address of a file."""
    found = ROW.fullmatch(address) or MEMBER.fullmatch(address)
    return (found[1], found[2]) if found else None


def read(storage: Storage, key: str, limit: int | None = None, tag: str | None = None) -> bytes:
    """Return at most `limit` bytes of a photo, which may be a row or a member.

    `tag` is that of the plan. Raises PhotoError for a row without a photo, StorageError like `Storage.get`;
    NotFoundError also when the file has changed since the plan.
    """
    inside = split(key)
    if inside is None:
        return storage.get(key, limit)
    entry = entry_of(storage, inside[0])
    if tag and tag.rpartition("@")[0] != entry.tag:
        raise NotFoundError(f"{shown(storage.uri_of(entry.key))} was changed since it was listed")
    if ROW.fullmatch(key):
        data = _row(storage, entry, int(inside[1]))
    else:
        place = tag.rpartition("@")[2] if tag else _place(storage, entry, inside[1])
        start, size = map(int, place.split("+"))
        if limit is not None and size > limit:
            raise too_large(storage.uri_of(key), limit)
        data = storage.part(entry.key, start, size) if size else b""
    if limit is not None and len(data) > limit:
        raise too_large(storage.uri_of(key), limit)
    return data


def read_address(address: str, limit: int) -> bytes:
    """Return at most `limit` bytes of a row or member by its full address. Raises like `read`."""
    inside = split(address)
    assert inside is not None
    folder = inside[0].rpartition("/")[0]
    return read(open_storage(folder or "."), address.removeprefix(f"{folder}/"), limit)


def members(storage: Storage, entry: Entry, left: LeftOut) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of a tar's regular files. Others, and damage, are counted in `left` as not read."""
    seen: set[str] = set()
    file = Ranged(storage, entry, MAX_HEADER)
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined] # tarfile keeps every member otherwise
                fault = _member_fault(member, entry.size, seen)
                if member.isdir():
                    continue
                if fault:
                    left.skip(f"{entry.key}#member={short(member.name)}", fault)
                else:
                    seen.add(member.name)
                    yield member.name, member.offset_data, member.size
                if len(seen) > MAX_MEMBERS:
                    raise OSError(f"it has more than {MAX_MEMBERS} members")
            file.seek(tar.offset)
        if any(file.read(tarfile.BLOCKSIZE)):  # tarfile ends silently at a damaged header
            raise OSError("a header is damaged")
    except DladiffError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError, IndexError, OverflowError) as error:
        left.skip(entry.key, f"not a tar file, or damaged after {len(seen)} members: {short(str(error), 80)}")


def open_parquet(storage: Storage, entry: Entry) -> Any:
    """Return a Parquet file that is read by ranges. Raises ValueError or OSError for another file."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(Ranged(storage, entry, MAX_CHUNK), pre_buffer=False, buffer_size=BLOCK)


def photo_column(file: Any) -> str | None:
    """Return the path of the column of photos ("image.bytes" or "image"), None without one.

    It holds bytes, or a struct of bytes and path as dataset hubs store it: one of NAMES, else the only such struct.
    """
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    schema = file.schema_arrow
    structs = [f.name for f in schema if types.is_struct(f.type) and _is_photo_struct(f.type, is_bytes)]
    for name in NAMES:
        if name in structs:
            return f"{name}.bytes"
        if name in schema.names and is_bytes(schema.field(name).type):
            return name
    return f"{structs[0]}.bytes" if len(structs) == 1 else None


def _is_photo_struct(kind: Any, is_bytes: Callable[[Any], bool]) -> bool:
    return kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)


def _member_fault(member: tarfile.TarInfo, size: int, seen: set[str]) -> str:
    """Return why a member is not read, "" for a regular file."""
    if not member.isreg() or member.issparse():
        return "it is a link, a device or a sparse file"
    if member.name in seen:
        return "the tar has two members of this name"
    if member.offset_data + member.size > size:
        return "the tar ends inside of it"
    return key_fault(member.name) or ""


def entry_of(storage: Storage, key: str) -> Entry:
    """Return size and tag of a file. Raises NotFoundError."""
    if storage.uri.startswith("s3://"):
        for entry in storage.list(key, log_skipped=False):  # Storage.tag returns no size
            if entry.key == key:
                return entry
    elif tag := storage.tag(key):
        return Entry(key, int(tag.partition("-")[0]), tag)
    raise NotFoundError(f"no such file: {shown(storage.uri_of(key))}; was it moved during the run?")


class _Recent:
    """The last results of slow calls, for all threads of this process; one call runs at a time."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._found: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], T], keep: bool = True) -> T:
        with self._lock:
            value: T = self._found.pop(key) if key in self._found else make()
            if keep:
                self._found[key] = value
            while len(self._found) > self._most:
                self._found.pop(next(iter(self._found)))
            return value


_TARS, _FILES, _GROUPS = _Recent(8), _Recent(8), _Recent(1)


def _place(storage: Storage, entry: Entry, name: str) -> str:
    """Return "offset+size" of a member; the headers of the tar are read once."""

    def index() -> dict[str, str]:
        return {found: f"{start}+{size}" for found, start, size in members(storage, entry, LeftOut())}

    places = _TARS.get((storage.uri, entry), index)
    if name not in places:
        raise NotFoundError(f"no member {short(name)} in {shown(storage.uri_of(entry.key))}")
    return places[name]


def _row(storage: Storage, entry: Entry, row: int) -> bytes:
    """Return the photo of a row. Raises PhotoError."""
    where = shown(storage.uri_of(entry.key))
    try:
        value = _value(storage, entry, row)
    except (ValueError, OSError, IndexError) as error:
        reason = short(" ".join(str(error).split()), 80)
        raise PhotoError(f"row {row} of {where} cannot be read: it is damaged or not supported ({reason})") from error
    if not value:
        raise PhotoError(f"row {row} of {where} holds no photo: its bytes are not an image")
    return value


def _value(storage: Storage, entry: Entry, row: int) -> bytes | None:
    key = storage.uri, entry
    file = _FILES.get(key, lambda: open_parquet(storage, entry))
    column, counts = photo_column(file), [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = list(accumulate(counts))
    if column is None or not ends or row >= ends[-1]:
        raise ValueError("there is no such row, or no column of photos")
    group = next(i for i, end in enumerate(ends) if row < end)
    at, size = row - ends[group] + counts[group], _chunk_bytes(file, group, column)
    if size > MAX_CHUNK:
        raise ValueError(f"its row group has {size} bytes of photos; write smaller ones")

    def flat(table: Any) -> Any:
        found = table.column(column.partition(".")[0])
        return found.combine_chunks().field("bytes") if "." in column else found

    def whole() -> Any:
        return flat(file.read_row_group(group, columns=[column], use_threads=False))

    def streamed() -> bytes | None:
        import pyarrow as pa

        start = 0
        for batch in file.iter_batches(STREAMED, row_groups=[group], columns=[column], use_threads=False):
            if at < start + batch.num_rows:
                found: bytes | None = flat(pa.Table.from_batches([batch]))[at - start].as_py()
                return found
            start += batch.num_rows
        return None

    if size > CACHED:
        return _GROUPS.get((key, row), streamed, keep=False)
    value: bytes | None = _GROUPS.get((key, group), whole)[at].as_py()
    return value


def _chunk_bytes(file: Any, group: int, column: str) -> int:
    about = file.metadata.row_group(group)
    chunks = (about.column(i) for i in range(about.num_columns))
    return int(sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column))


def read_small(storage: Storage, entry: Entry, start: int, size: int, most: int) -> bytes:
    """Return a member of at most `most` bytes. Raises StorageError for a larger one."""
    if size > most:
        raise StorageError(f"a member of {shown(storage.uri_of(entry.key))} has more than {most} bytes")
    return storage.part(entry.key, start, size) if size else b""
