"""Notes, stored in an output, of pages and evaluation results that show its people; `dladiff retention` reads them.

A note holds digests of names, not names: it may outlive a page that cannot be reached.
"""

import hashlib
import json
import logging
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dladiff.errors import NotFoundError, StorageError
from pipeline.records.commit import now
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

NOTES = "pages/"
REPORT = "report/index.html"  # the page inside the output
EVALUATION = "evaluation"  # kind of the note of `dladiff evaluate` results
ABOUT = "evaluation.json"  # in evaluation results: the evaluated outputs
PICTURE = re.compile(r"\d{5}-\w+\.webp")  # picture files of a report, in the folder `<page>_files`
MAX_NOTE = 64 * 2**20  # bytes of a note: some three million people
SIGN = 16  # hexadecimal digits that stand for a person: two of a million people share them with probability 3e-8

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Note:
    """Address and host of a page or results, time (UTC), and digests of the people they show."""

    kind: str
    address: str
    host: str
    time: str
    people: frozenset[str]

    @property
    def id(self) -> str:
        """The note's name: a digest of host and address."""
        return hashlib.sha256(f"{self.host}\0{self.address}".encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def sign(self, name: str) -> str:
        """Return the digest of a person's name in this note."""
        return hashlib.sha256(f"{self.id}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:SIGN]

    def put(self, output: Storage) -> None:
        """Write the note."""
        values = asdict(self) | {"people": sorted(self.people)}
        output.put(f"{NOTES}{self.id}.json", json.dumps(values).encode(), "application/json")


def mark(address: str) -> str:
    """Return the digest of an output's address that its pages and results carry."""
    return hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def announce(output: Storage, kind: str, page: Path | str, people: Iterable[str]) -> Callable[[], None]:
    """Store a note in an output, before `page` is written, that the page will show these people.

    `page` is a local file, a storage address, or REPORT. Call the returned function once the page is written; until
    then the note also holds the people of an earlier page. If the output cannot be written, a warning is logged.
    """
    address = str(page)
    if isinstance(page, Path):
        address = str(page.absolute().parent.resolve() / page.name)
    host = socket.gethostname() if address.startswith("/") else ""
    empty = Note(kind=kind, address=address, host=host, time=now(), people=frozenset())
    note = _with(empty, map(empty.sign, people))
    try:
        _with(note, _people(output, note)).put(output)
    except StorageError as error:
        log.warning("%s; so `dladiff retention` will not reach %s", error, shown(address))
        return lambda: None
    return lambda: note.put(output)


def notes(output: Storage) -> Iterator[tuple[str, Note | None]]:
    """Yield (key, note) of each note; the note is None when it cannot be read."""
    for entry in list(output.list(NOTES)):
        yield entry.key, _read(output, entry.key)


def mark_results(results: Storage, outputs: Iterable[str]) -> None:
    """Store in evaluation results which outputs were evaluated. The caller holds the lease on the results."""
    known = marks_of(results)
    found = known | {mark(uri) for uri in outputs}
    if found != known:
        results.put(ABOUT, json.dumps({"kind": EVALUATION, "outputs": sorted(found)}).encode(), "application/json")


def marks_of(results: Storage) -> set[str]:
    """Return the marks of the evaluated outputs, none if the storage holds no results. Raises StorageError."""
    try:
        about = json.loads(results.get(ABOUT, MAX_NOTE))
    except (NotFoundError, ValueError):
        return set()
    if not isinstance(about, dict) or about.get("kind") != EVALUATION or not isinstance(about.get("outputs"), list):
        return set()
    return set(map(str, about["outputs"]))


def _with(note: Note, people: Iterable[str]) -> Note:
    return Note(**(vars(note) | {"people": note.people | frozenset(people)}))


def _people(output: Storage, note: Note) -> frozenset[str]:
    before = _read(output, f"{NOTES}{note.id}.json")
    return before.people if before else frozenset()


def _read(output: Storage, key: str) -> Note | None:
    try:
        values = json.loads(output.get(key, MAX_NOTE))
        texts = {name: values[name] for name in ("kind", "address", "host", "time")}
        note = Note(**texts, people=frozenset(values["people"]))
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None
    good = all(isinstance(text, str) for text in (*texts.values(), *note.people))
    return note if good and key == f"{NOTES}{note.id}.json" else None
