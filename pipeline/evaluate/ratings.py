"""ratings.csv and pairs.csv: the answers of raters about generated faces, one row per answer.

Users open the file in spreadsheets, which evaluate cells that begin like a formula. So such a text is written with an
apostrophe before it, which makes it plain text in spreadsheets; reading removes the apostrophe. Every cell is quoted,
so that a separator of another locale inside a name does not split the cell.
"""

import csv
import io
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from dladiff.errors import DamagedError, NotFoundError, StorageError, TooLargeError
from dladiff.evaluation.intervals import Estimate, mean_over_people
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

RATINGS = "ratings.csv"
COLUMNS = ("rater", "face", "identity", "attack", "condition", "prompt", "score", "time")
SCORES = ("1", "2", "3", "4", "5")
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""First characters of formulas, including full-width ones, after any apostrophes."""

MAX_RATINGS_BYTES = 64 * 2**20
"""Largest ratings.csv that is read; a rating takes about 200 bytes."""
MAX_WRITES = 50
"""Attempts to write the file while others change it."""
log = logging.getLogger(__name__)

Rating = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A file of answers."""

    file: str
    """Key in the results."""
    columns: tuple[str, ...]
    answer: str
    """Column of the answer."""
    answers: tuple[str, ...]
    """Allowed answers; a page sends the place of one, counted from 1."""
    unit: str
    """Column that names what a rater sees; a rater answers once for each."""
    people: tuple[str, ...]
    """Columns with the identities that are shown."""
    faults: str
    """What an invalid row lacks, for a warning."""


FACES_SHEET = Sheet(
    file=RATINGS,
    columns=COLUMNS,
    answer="score",
    answers=SCORES,
    unit="face",
    people=("identity",),
    faults="no score 1 to 5",
)
PAIRS_SHEET = Sheet(
    file="pairs.csv",
    columns=(
        *("rater", "pair", "face", "identity", "photo", "shown"),
        *("attack", "condition", "prompt", "answer", "time"),
    ),
    answer="answer",
    answers=("same", "different", "cannot say"),
    unit="pair",
    people=("identity", "shown"),
    faults="no known answer",
)
SHEETS = (FACES_SHEET, PAIRS_SHEET)


def read_ratings(results: Storage, sheet: Sheet = FACES_SHEET) -> list[Rating]:
    """Return the ratings of a sheet, [] without the file. Invalid rows are left out with a warning.

    Raises DamagedError (the file as a whole cannot be read), StorageError.
    """
    return _parsed(results, sheet)[0]


def _parsed(results: Storage, sheet: Sheet) -> tuple[list[Rating], list[list[str]]]:
    """Return the ratings, and the cells of the invalid rows."""
    where = shown(results.uri_of(sheet.file))
    try:
        text = results.get(sheet.file, MAX_RATINGS_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    except NotFoundError:
        return [], []
    except UnicodeDecodeError as error:
        raise DamagedError(f"{where} is not UTF-8; repair or delete it") from error
    except csv.Error as error:
        raise DamagedError(f"{where} is no CSV file ({error}); repair or delete it") from error
    except TooLargeError as error:
        raise DamagedError(f"{where} has more than {MAX_RATINGS_BYTES} bytes; repair or delete it") from error
    if not set(sheet.columns) <= set(reader.fieldnames or ()):
        raise DamagedError(f"{where} lacks a column of {', '.join(sheet.columns)}; repair or delete it")
    good = [r for r in rows if r[sheet.answer] in sheet.answers and None not in r and None not in r.values()]
    bad = [[*(row.get(name) or "" for name in sheet.columns), *row.get(None, ())] for row in rows if row not in good]
    if bad:
        log.warning("%s: left out %d rows that have %s or lack a column", where, len(bad), sheet.faults)
    return [{name: _plain(value) for name, value in row.items()} for row in good], bad


def _guarded(value: str) -> str:
    """Return a cell's text that no spreadsheet evaluates; `_plain` is the inverse."""
    return f"'{value}" if FORMULA.match(value) else value


def _plain(value: str) -> str:
    return value[1:] if value.startswith("'") and FORMULA.match(value) else value


def opinions(ratings: Iterable[Rating]) -> dict[tuple[str, str, str], Estimate]:
    """Return the mean opinion score by (attack, condition, prompt), with an interval over the people in the faces."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in ratings:
        own = values.setdefault((row["attack"], row["condition"], row["prompt"]), {})
        own.setdefault(row["identity"], []).append(float(row["score"]))
    return {key: mean for key, own in values.items() if (mean := mean_over_people(own)) is not None}


def add_rating(results: Storage, rating: Rating, sheet: Sheet = FACES_SHEET) -> None:
    """Append an answer, unless this rater has given one; safe against concurrent writers. Raises StorageError."""

    def added(rows: list[Rating]) -> list[Rating]:
        known = {(row["rater"], row[sheet.unit]) for row in rows}
        return rows if (rating["rater"], rating[sheet.unit]) in known else [*rows, rating]

    _change(results, sheet, added, damaged=True)


def keep_ratings(results: Storage, kept: Callable[[str], bool]) -> None:
    """Remove the answers about identities for which `kept` is False, and invalid rows, whose identity is unknown.

    Raises StorageError.
    """
    for sheet in SHEETS:
        _change(results, sheet, partial(_of, sheet, kept), damaged=False)


def _of(sheet: Sheet, kept: Callable[[str], bool], rows: list[Rating]) -> list[Rating]:
    return [row for row in rows if all(kept(row[name]) for name in sheet.people)]


def _change(results: Storage, sheet: Sheet, change: Callable[[list[Rating]], list[Rating]], *, damaged: bool) -> None:
    """Replace the ratings by `change(ratings)`, retrying on concurrent changes; `damaged` keeps invalid rows."""
    file = sheet.file
    for _ in range(MAX_WRITES):
        tag = results.tag(file)
        rows, bad = _parsed(results, sheet) if tag else ([], [])
        changed = change(rows)
        if changed == rows and (damaged or not bad):
            return
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, sheet.columns, extrasaction="ignore", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows({name: _guarded(row[name]) for name in sheet.columns} for row in changed)
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows(map(_guarded, row) for row in bad if damaged)
        data = out.getvalue().encode()
        if results.put_if_match(file, data, tag) if tag else results.put_if_absent(file, data):
            return
    raise StorageError(f"{results.uri_of(file)} keeps changing; is another program writing to it?")
