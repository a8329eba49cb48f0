"""Read the rows of a CSV, JSONL or Parquet index file one at a time, with their numbers."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

from dladiff.errors import ConfigError
from pipeline.sources.cells import bare, text_of
from pipeline.storage.keys import short

T = TypeVar("T")

COLUMNS = ("identity", "uri")
MAX_CELL = 2**24  # characters of one line or cell of a CSV file, held in memory
BATCH = 1000  # rows of a Parquet file held at a time

IndexRow = tuple[int, str, str, str]
"""Row number, identity, uri, role; a cell that is no text is `Refused`."""


def _columns(names: Sequence[str], where: str) -> list[int | None]:
    """Return the positions of the columns identity, uri and role; only role may be absent (None)."""
    found = [bare(name) for name in names]
    if twice := [name for name in (*COLUMNS, "role") if found.count(name) > 1]:
        raise ConfigError([f"{where}: column {' and '.join(twice)} is there twice; keep one"])
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        there = ", ".join(short(name, 80) for name in found[:20]) or "none"
        raise ConfigError([f"{where}: column {' and '.join(missing)} is missing; found: {there}"])
    return [found.index(name) if name in found else None for name in (*COLUMNS, "role")]


def csv_records(handle: BinaryIO, where: str) -> Iterator[IndexRow]:
    """Yield the rows of a CSV file; the header is row 1. Raises ConfigError."""
    csv.field_size_limit(MAX_CELL)  # for the process: a cell of more than Python's 128 KiB is a fault of its row alone
    with io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(_bounded(lines), strict=True)
        try:
            positions = _columns(next(reader, []), where)
            for number, fields in enumerate(reader, 2):
                if fields:
                    values = ["" if p is None or p >= len(fields) else fields[p] for p in positions]
                    yield number, bare(values[0]), bare(values[1]), bare(values[2])
        except csv.Error as error:
            raise ConfigError([f"{where}, line {reader.line_num}: not CSV ({error}); save it as CSV UTF-8"]) from error
        except UnicodeDecodeError as error:
            line = f"{where}, after line {reader.line_num}"
            raise ConfigError([f"{line}: not UTF-8; save it as CSV UTF-8"]) from error


def json_records(handle: BinaryIO, where: str) -> Iterator[IndexRow]:
    """Yield the rows of a JSONL file, one object a line; the first line is row 1. Raises ConfigError."""
    with io.TextIOWrapper(handle, encoding="utf-8-sig", newline="\n") as lines:
        number = 0
        try:
            for number, line in enumerate(_bounded(lines), 1):
                if bare(line):
                    found = json.loads(line)
                    if not isinstance(found, dict):
                        raise ValueError("not an object")
                    cells = {bare(name): value for name, value in found.items()}
                    yield number, *(text_of(cells.get(name)) for name in (*COLUMNS, "role"))  # type: ignore[misc]
        except (csv.Error, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            kind = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"not JSON ({short(str(error), 80)})"
            raise ConfigError(
                [f"{where}, line {number + (kind == 'not UTF-8')}: {kind}; write one object a line"]
            ) from error


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
            yield number, text_of(identity), text_of(uri), text_of(role)


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
