"""Delete pages and evaluation results that show people who left, at the addresses in the output's notes.

Anyone who can write the output can forge a note. So a page or results must name this output to be deleted.
"""

import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dladiff.errors import DamagedError, NotFoundError, StorageError
from pipeline.evaluate.ratings import SHEETS, keep_ratings
from pipeline.records.commit import READERS, load
from pipeline.records.lease import Lease
from pipeline.records.pages import EVALUATION, PICTURE, REPORT, Note, mark, marks_of, notes
from pipeline.retention.leftovers import sweep
from pipeline.storage.base import TEMP_PREFIX, Storage
from pipeline.storage.keys import shown
from pipeline.storage.open import open_storage

HEAD = 65_536  # the mark is in the first HEAD bytes of a page
_MARK = re.compile(
    rb'<meta name="generator" content="dladiff">\s*<meta name="dladiff-output" content="([0-9a-f]{32})">'
)
_UNFINISHED = re.compile(re.escape(TEMP_PREFIX) + r"[0-9a-f]{32}")
_TOGETHER = ("results.parquet", "tables.md", "tables.html")  # files about several people
_BY_KEY = ("faces/", "features/", "starts/")  # the record of the same key names the person
_RECORDS = ("rows/", "failed/")
_KEY = re.compile(r"[a-z]+/([0-9a-f]{32})(?:[./].*)?")
_WRITTEN = (*_RECORDS, *_BY_KEY, "sheets/", *_TOGETHER, *(s.file for s in SHEETS), TEMP_PREFIX)


@dataclass
class Outside:
    """Addresses deleted or to be deleted, and lines on what was not reached."""

    deleted: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class People:
    """Whose pages and results to delete: everyone not in `present`, if given; and pages that show one of `named`."""

    present: set[str] | None
    named: set[str]

    def of(self, note: Note) -> frozenset[str]:
        """Return the digests of these people in a note."""
        found = note.people & frozenset(map(note.sign, self.named)) if note.kind != EVALUATION else frozenset[str]()
        return found | (note.people - frozenset(map(note.sign, self.present)) if self.present is not None else found)


class _Missed(Exception):  # noqa: N818 - a result, not a fault
    """Why a page or results were not reached; `gone`: the file no longer exists."""

    def __init__(self, why: str, *, gone: bool = False) -> None:
        super().__init__(why)
        self.gone = gone


def forget(output: Storage, people: People, *, really: bool) -> Outside:
    """Return, and with `really` delete, pages that show these people and their part of results. Needs the lease.

    Pages are deleted as a whole. Results lose the people's rows, pictures and ratings, and files about several people.
    """
    found = Outside()
    for key, note in notes(output):
        if note is None:
            found.missed.append(f"{shown(output.uri_of(key))} cannot be read: delete it, and its page")
        elif digests := people.of(note):
            try:
                _forget(output, note, digests, really)
                found.deleted.append(note.address)
            except (_Missed, StorageError, OSError) as error:
                where = f"{shown(note.kind)} {shown(note.address)}{' on ' * bool(note.host)}{shown(note.host)}"
                found.missed.append(f"{where}: {error} (its note: {key})")
                if not (isinstance(error, _Missed) and error.gone):
                    continue
            if really:
                _renew(output, key, note, digests)
    return found


def _forget(output: Storage, note: Note, people: frozenset[str], really: bool) -> None:
    if note.address == REPORT:
        if really:
            _delete(output, [entry.key for entry in output.list("report/")])
    elif note.kind == EVALUATION:
        _forget_results(note, mark(output.uri), lambda name: note.sign(name) in people, really)
    else:
        _forget_page(note, mark(output.uri), really)


def _renew(output: Storage, key: str, note: Note, people: frozenset[str]) -> None:
    """Delete the note of a page; from the note of results remove the people who were deleted there."""
    rest = note.people - people
    if note.kind == EVALUATION and rest:
        Note(**(vars(note) | {"people": rest})).put(output)
    else:
        output.delete(key)


def _forget_page(note: Note, wanted: str, really: bool) -> None:
    """Delete a page, the pictures beside it, and hidden files of its unfinished writes."""
    path = Path(note.address)
    if not path.is_absolute() or path.suffix != ".html":
        raise _Missed("is no local file that ends in .html; delete the note")
    elsewhere = note.host != socket.gethostname()
    try:
        with _folder(path.parent) as folder:
            if not _is_page(folder, path.name, wanted):
                raise _Missed("is no page of this output now; delete it by hand, then its note")
            if really:
                for name in filter(_UNFINISHED.fullmatch, _names(folder)):
                    if _is_page(folder, name, wanted):
                        _unlink(name, folder)
                _forget_pictures(folder, f"{path.stem}_files")
                _unlink(path.name, folder)
    except FileNotFoundError:
        if elsewhere or not path.parent.is_dir():
            raise _Missed("is not there; delete it where it is, then its note") from None
        raise _Missed("is not there any more; if it was moved, delete it there", gone=True) from None
    except OSError as error:
        raise _Missed(f"{error.strerror or error}; delete it by hand, then its note") from error


def _forget_pictures(parent: int, name: str) -> None:
    with suppress(FileNotFoundError, NotADirectoryError), _folder(name, parent) as folder:
        for file in _names(folder):
            if PICTURE.fullmatch(file) or _UNFINISHED.fullmatch(file):
                _unlink(file, folder)
        with suppress(OSError):  # it holds files of the user
            os.rmdir(name, dir_fd=parent)


def _unlink(name: str, folder: int) -> None:
    os.unlink(name, dir_fd=folder)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


@contextmanager
def _folder(path: Path | str, parent: int | None = None) -> Iterator[int]:
    """Yield the descriptor of an open folder; below `parent` links are refused."""
    alone = os.O_NOFOLLOW if parent is not None else 0
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | alone, dir_fd=parent)
    try:
        yield handle
    finally:
        os.close(handle)


def _is_page(folder: int, name: str, wanted: str) -> bool:
    """Return whether a file is regular and carries the mark of this output. Raises FileNotFoundError."""
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return False
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(handle, "rb") as file:
        found = _MARK.search(file.read(HEAD))
    return found is not None and found[1].decode() == wanted


def _forget_results(note: Note, wanted: str, gone: Callable[[str], bool], really: bool) -> None:
    if not note.address.startswith(("/", "s3://")):
        raise _Missed("is no address of results; delete the note")
    results = open_storage(note.address)
    if wanted not in marks_of(results):
        raise _Missed("are no results of this output now; delete them by hand, then the note")
    if not really:
        return
    with Lease(results) as lease:
        _delete(results, [entry.key for entry in results.list("sheets/")])
        _delete(results, _TOGETHER)
        keep_ratings(results, lambda name: not gone(name))
        owners = _owners(results)
        lease.check()
        for folders in (_BY_KEY, _RECORDS):  # records last: they name the people of the other files
            keys = [entry.key for folder in folders for entry in results.list(folder)]
            _delete(results, [key for key in keys if _is_due(key, owners, gone)])
        if left := sweep(results, _WRITTEN):
            raise _Missed("; ".join(left))


def _owners(results: Storage) -> dict[str, str | None]:
    """Return the identity of each row by key; None if its record cannot be read."""
    keys = [entry.key for folder in _RECORDS for entry in results.list(folder)]

    def read(key: str) -> str | None:
        with suppress(DamagedError, NotFoundError):
            name = load(results, key).get("identity")
            return name if isinstance(name, str) else None
        return None

    with ThreadPoolExecutor(READERS) as pool:
        names = zip(keys, pool.map(read, keys), strict=True)
        return {match[1]: name for key, name in names if (match := _KEY.fullmatch(key))}


def _is_due(key: str, owners: dict[str, str | None], gone: Callable[[str], bool]) -> bool:
    """Return whether a file belongs to a person who left, or to no record: an attempt died before its record."""
    match = _KEY.fullmatch(key)
    if match is None:
        return False
    name = owners.get(match[1])
    return name is None or gone(name)


def _delete(storage: Storage, keys: "list[str] | tuple[str, ...]") -> None:
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(storage.delete, keys))
