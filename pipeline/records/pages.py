"""Notes in an output of pages and results that show its people and are kept elsewhere: `dladiff retention` reads them.

A note names people by a digest alone, so that a note of a page that cannot be reached holds no name.
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
REPORT = "report/index.html"  # the page that an output holds itself
EVALUATION = "evaluation"  # kind of a note: results of `dladiff evaluate`
ABOUT = "evaluation.json"  # in such results: the outputs that they are of
PICTURE = re.compile(r"\d{5}-\w+\.webp")  # beside a report, in the folder `<page>_files`
MOST_NOTE = 64 * 2**20  # bytes of a note: some three million people
SIGN = 16  # hexadecimal digits that stand for a person: two of a million people share them with probability 3e-8

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Note:
    """Where a page or results are, on which machine, since when, and the digests of the people they show."""

    kind: str
    address: str
    host: str
    time: str
    people: frozenset[str]

    @property
    def id(self) -> str:
        """The note's name, the same for every page of this address."""
        return hashlib.sha256(f"{self.host}\0{self.address}".encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def sign(self, name: str) -> str:
        """Return what stands for a person in this note."""
        return hashlib.sha256(f"{self.id}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:SIGN]

    def put(self, output: Storage) -> None:
        """Write the note."""
        values = asdict(self) | {"people": sorted(self.people)}
        output.put(f"{NOTES}{self.id}.json", json.dumps(values).encode(), "application/json")


def mark(address: str) -> str:
    """Return what a page or results hold of the address of their output."""
    return hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def announce(output: Storage, kind: str, place: Path | str, people: Iterable[str]) -> Callable[[], None]:
    """Note in an output, before it is written, that a page at `place` will show these people.

    `place` is a local file, an address of a storage, or REPORT. The function returned is called once the page is there:
    until then the note also names who was on an earlier page. An output that cannot be written gets a warning.
    """
    address = str(place)
    if isinstance(place, Path):
        address = str(place.absolute().parent.resolve() / place.name)
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
    """Yield the key of each note and the note, None where it cannot be read."""
    for entry in list(output.list(NOTES)):
        yield entry.key, _read(output, entry.key)


def mark_results(results: Storage, outputs: Iterable[str]) -> None:
    """Note in results of an evaluation which outputs they are of; the lease on them is held."""
    known = marks_of(results)
    found = known | {mark(uri) for uri in outputs}
    if found != known:
        results.put(ABOUT, json.dumps({"kind": EVALUATION, "outputs": sorted(found)}).encode(), "application/json")


def marks_of(results: Storage) -> set[str]:
    """Return the marks of the outputs that results are of; none where they are no results. Raises StorageError."""
    try:
        about = json.loads(results.get(ABOUT, MOST_NOTE))
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
        values = json.loads(output.get(key, MOST_NOTE))
        texts = {name: values[name] for name in ("kind", "address", "host", "time")}
        note = Note(**texts, people=frozenset(values["people"]))
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None
    good = all(isinstance(text, str) for text in (*texts.values(), *note.people))
    return note if good and key == f"{NOTES}{note.id}.json" else None
