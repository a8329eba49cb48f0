"""Read the rows of a CSV or Parquet index file one at a time, with their numbers."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

from dladiff.errors import ConfigError
from pipeline.storage.keys import short

T = TypeVar("T")

COLUMNS = ("identity", "uri")
MAX_CELL = 2**24  # characters of one line or cell of a CSV file, held in memory
BATCH = 1000  # rows of a Parquet file held at a time

IndexRow = tuple[int, str, str, str]
"""Row number, identity, uri, role."""


def _columns(found: Sequence[str], where: str) -> list[int | None]:
    """Return the positions of the columns identity, uri and role; only role may be absent (None)."""
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        names = ", ".join(short(name, 80) for name in found[:20]) or "none"
        raise ConfigError([f"{where}: column {' and '.join(missing)} is missing; found: {names}"])
    return [found.index(name) if name in found else None for name in (*COLUMNS, "role")]


def csv_records(handle: BinaryIO, where: str) -> Iterator[IndexRow]:
    """Yield the rows of a CSV file; the header is row 1. Raises ConfigError."""
    csv.field_size_limit(MAX_CELL)  # for the process: a cell of more than Python's 128 KiB is a fault of its row alone
    with io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(_bounded(lines), strict=True)
        try:
            positions = _columns([name.strip() for name in next(reader, [])], where)
            for number, fields in enumerate(reader, 2):
                if fields:
                    values = ["" if p is None or p >= len(fields) else fields[p] for p in positions]
                    yield number, values[0], values[1], values[2]
        except csv.Error as error:
            raise ConfigError([f"{where}, line {reader.line_num}: not CSV ({error}); save it as CSV UTF-8"]) from error
        except UnicodeDecodeError as error:
            line = f"{where}, after line {reader.line_num}"
            raise ConfigError([f"{line}: not UTF-8; save it as CSV UTF-8"]) from error


def _bounded(lines: io.TextIOWrapper) -> Iterator[str]:
    """Yield the lines of a text. Raises csv.Error for a line of more than MAX_CELL characters, perhaps endless."""
    while line := lines.readline(MAX_CELL):
        if len(line) == MAX_CELL:
            raise csv.Error(f"a line has more than {MAX_CELL} characters")
        yield line


def parquet_records(handle: BinaryIO, where: str) -> Iterator[IndexRow]:
    """Yield the rows of a Parquet file; the first is row 1. Raises ConfigError."""
    import pyarrow.parquet as pq

    file = _read(lambda: pq.ParquetFile(handle), where)
    names: list[str] = file.schema_arrow.names
    columns = [names[i] if i is not None else None for i in _columns(names, where)]
    batches = _read(lambda: file.iter_batches(batch_size=BATCH, columns=[name for name in columns if name]), where)
    number = 0
    while (batch := _read(lambda: next(batches, None), where)) is not None:
        empty = [None] * batch.num_rows
        values = [_cells(batch.column(name), where) if name else empty for name in columns]
        for identity, uri, role in zip(*values, strict=True):
            number += 1
            yield number, _text(identity), _text(uri), _text(role)


def _cells(column: Any, where: str) -> list[Any]:
    """Return the values of a column. Bytes that are not UTF-8 become lone surrogates: only their row is refused."""
    try:
        cells: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        raw = _read(lambda: column.cast("binary").to_pylist(), where)
        cells = [cell if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            [f"{where}: a column cannot be read ({type(error).__name__}); write names as text"]
        ) from error
    return cells


def _read(step: Callable[[], T], where: str) -> T:
    """Call a function of pyarrow. Raises ConfigError for its errors, which are ValueError and OSError."""
    try:
        return step()
    except (ValueError, OSError) as error:
        reason = short(" ".join(str(error).split()))
        raise ConfigError([f"{where}: not a Parquet file that can be read: {reason}; write it again"]) from error


def _text(value: object) -> str:
    """Return the text of a cell: numbers as text, None and NaN as ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)
