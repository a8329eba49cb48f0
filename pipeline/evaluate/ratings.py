"""ratings.csv: the ratings of generated faces, one row per rating.

Users open the file in spreadsheets, which evaluate cells that begin like a formula. So such a text is written with an
apostrophe before it, which makes it plain text in spreadsheets; reading removes the apostrophe. Every cell is quoted,
so that a separator of another locale inside a name does not split the cell.
"""

import csv
import io
import logging
import re
from collections.abc import Callable, Iterable

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


def read_ratings(results: Storage) -> list[Rating]:
    """Return the ratings of ratings.csv, [] without the file. Invalid rows are left out with a warning.

    Raises DamagedError (the file as a whole cannot be read), StorageError.
    """
    return _parsed(results)[0]


def _parsed(results: Storage) -> tuple[list[Rating], list[list[str]]]:
    """Return the ratings, and the cells of the invalid rows."""
    where = shown(results.uri_of(RATINGS))
    try:
        text = results.get(RATINGS, MAX_RATINGS_BYTES).decode("utf-8-sig")
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
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise DamagedError(f"{where} lacks a column of {', '.join(COLUMNS)}; repair or delete it")
    good = [row for row in rows if row["score"] in SCORES and None not in row and None not in row.values()]
    bad = [[*(row.get(name) or "" for name in COLUMNS), *row.get(None, ())] for row in rows if row not in good]
    if bad:
        log.warning("%s: left out %d rows that have no score 1 to 5 or lack a column", where, len(bad))
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


def add_rating(results: Storage, rating: Rating) -> None:
    """Append a rating, unless this rater has rated this face; safe against concurrent writers. Raises StorageError."""

    def added(rows: list[Rating]) -> list[Rating]:
        known = {(row["rater"], row["face"]) for row in rows}
        return rows if (rating["rater"], rating["face"]) in known else [*rows, rating]

    _change(results, added, damaged=True)


def keep_ratings(results: Storage, kept: Callable[[str], bool]) -> None:
    """Remove the ratings of identities for which `kept` is False, and invalid rows, whose identity is unknown.

    Raises StorageError.
    """
    _change(results, lambda rows: [row for row in rows if kept(row["identity"])], damaged=False)


def _change(results: Storage, change: Callable[[list[Rating]], list[Rating]], *, damaged: bool) -> None:
    """Replace the ratings by `change(ratings)`, retrying on concurrent changes; `damaged` keeps invalid rows."""
    for _ in range(MAX_WRITES):
        tag = results.tag(RATINGS)
        rows, bad = _parsed(results) if tag else ([], [])
        changed = change(rows)
        if changed == rows and (damaged or not bad):
            return
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows({name: _guarded(row[name]) for name in COLUMNS} for row in changed)
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows(map(_guarded, row) for row in bad if damaged)
        data = out.getvalue().encode()
        if results.put_if_match(RATINGS, data, tag) if tag else results.put_if_absent(RATINGS, data):
            return
    raise StorageError(f"{results.uri_of(RATINGS)} keeps changing; is another program writing to it?")
