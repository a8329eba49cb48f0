"""Spool: photo rows held and sorted by SQLite, outside Python's memory, so that millions of them need little."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from dladiff.errors import StorageError

CACHE_KIB = 16_384  # what SQLite keeps in memory: about 100,000 rows, so that a small run writes no file
BROKEN = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}

Value = bytes | str | int | None

SCHEMA = """
CREATE TABLE photo (
    name BLOB NOT NULL, mark TEXT NOT NULL, key BLOB NOT NULL, size INTEGER NOT NULL, tag BLOB NOT NULL, uri BLOB
)
"""


class Listed(NamedTuple):
    """One photo and the identity it belongs to.

    `mark` is the set of the photo: "A" clean, "B" protected, "C" ignored, "" none, which is protected too.
    `uri` is None where the storage that listed the photo knows it.
    """

    name: str
    mark: str
    key: str
    size: int
    tag: str
    uri: str | None = None


class Spool:
    """A table `photo` with the columns of Listed, in a database that is gone when the spool is closed.

    The database has no name: SQLite keeps it in its cache, and in an unlinked file of the temporary folder
    (SQLITE_TMPDIR, TMPDIR, /var/tmp) when it outgrows that. So nothing is left behind, whatever ends the process.
    Texts are stored as bytes (`blob`): these sort by code point as Python sorts, and hold lone surrogates.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", check_same_thread=False)  # a generator may be closed by another thread
        for setting in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", f"cache_size = -{CACHE_KIB}"):
            self._db.execute(f"PRAGMA {setting}")
        self._db.execute(SCHEMA)

    def __enter__(self) -> Self:
        """Return the spool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the database. A full or broken disk becomes a StorageError."""
        self._db.close()
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in BROKEN:
            raise StorageError(
                f"cannot keep the list of photos in the temporary folder ({error}); "
                "free some space there, or name another folder in SQLITE_TMPDIR"
            ) from error

    def add(self, rows: Iterable[Listed]) -> None:
        """Add rows, taken one by one."""
        self.many(
            "INSERT INTO photo VALUES (?, ?, ?, ?, ?, ?)",
            (
                (blob(r.name), r.mark, blob(r.key), r.size, blob(r.tag), None if r.uri is None else blob(r.uri))
                for r in rows
            ),
        )

    def rows(self) -> Iterator[Listed]:
        """Yield the rows sorted by name, then by URI where they have one, then by key."""
        for name, mark, key, size, tag, uri in self.execute("SELECT * FROM photo ORDER BY name, uri, key"):
            yield Listed(text(name), mark, text(key), size, text(tag), None if uri is None else text(uri))

    def execute(self, sql: str, *values: Value) -> sqlite3.Cursor:
        """Run one statement."""
        return self._db.execute(sql, values)

    def many(self, sql: str, values: Iterable[Sequence[Value]]) -> None:
        """Run one statement for each of many rows of values, taken one by one."""
        self._db.executemany(sql, values)

    def function(self, name: str, rule: Callable[[str], str]) -> None:
        """Make a rule on texts known to SQL."""
        self._db.create_function(name, 1, lambda value: blob(rule(text(value))), deterministic=True)

    def holds(self, sql: str, *values: Value) -> bool:
        """Return whether a query has any row."""
        return self.execute(sql, *values).fetchone() is not None


def blob(value: str) -> bytes:
    """Return a text as bytes whose order is the order of the texts."""
    return value.encode("utf-8", "surrogatepass")


def text(value: bytes) -> str:
    """Return the text of a blob."""
    return value.decode("utf-8", "surrogatepass")
