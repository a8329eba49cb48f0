"""Spool: photo rows stored and sorted by SQLite, so that millions of rows need little memory."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from dladiff.errors import StorageError

CACHE_KIB = 16_384  # SQLite's memory: about 100,000 rows, so a small run writes no file
BROKEN = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}

Value = bytes | str | int | None

SCHEMA = """
CREATE TABLE photo (
    name BLOB NOT NULL, mark TEXT NOT NULL, key BLOB NOT NULL, size INTEGER NOT NULL, tag BLOB NOT NULL, uri BLOB
)
"""


class Listed(NamedTuple):
    """One photo and the identity it belongs to.

    `mark` is the set of the photo: "A" clean, "B" protected, "C" ignored, "" no set, which is protected too.
    `uri` is None when the listing storage gives it.
    """

    name: str
    mark: str
    key: str
    size: int
    tag: str
    uri: str | None = None


class Spool:
    """A table `photo` with the columns of Listed, in a database that is deleted when the spool is closed.

    The database is anonymous: SQLite keeps it in its cache, and beyond that in an unlinked file of the temporary
    folder (SQLITE_TMPDIR, TMPDIR, /var/tmp). So nothing remains, even if the process is killed.
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
        """Add rows from an iterator, one by one."""
        self.many(
            "INSERT INTO photo VALUES (?, ?, ?, ?, ?, ?)",
            (
                (blob(r.name), r.mark, blob(r.key), r.size, blob(r.tag), None if r.uri is None else blob(r.uri))
                for r in rows
            ),
        )

    def rows(self) -> Iterator[Listed]:
        """Yield the rows sorted by name, URI (if any) and key."""
        for name, mark, key, size, tag, uri in self.execute("SELECT * FROM photo ORDER BY name, uri, key"):
            yield Listed(text(name), mark, text(key), size, text(tag), None if uri is None else text(uri))

    def execute(self, sql: str, *values: Value) -> sqlite3.Cursor:
        """Run one statement."""
        return self._db.execute(sql, values)

    def many(self, sql: str, values: Iterable[Sequence[Value]]) -> None:
        """Run one statement for each row of values."""
        self._db.executemany(sql, values)

    def function(self, name: str, rule: Callable[[str], str]) -> None:
        """Define an SQL function of one text."""
        self._db.create_function(name, 1, lambda value: blob(rule(text(value))), deterministic=True)

    def holds(self, sql: str, *values: Value) -> bool:
        """Return whether a query has any row."""
        return self.execute(sql, *values).fetchone() is not None


def blob(value: str) -> bytes:
    """Return a text as bytes that sort like the text."""
    return value.encode("utf-8", "surrogatepass")


def text(value: bytes) -> str:
    """Return the text of a blob."""
    return value.decode("utf-8", "surrogatepass")
