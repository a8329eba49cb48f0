"""ratings.csv: what people say of generated faces, one row a rating.

The file is made to be opened in a spreadsheet, which computes a cell that begins like a formula. So an apostrophe is
written before such a text, which spreadsheets show as text, and taken away when the file is read. Every cell stands in
quotes, so that no name makes a cell of its own where the separator is another one.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable

from dladiff.errors import NotFoundError, StorageError
from dladiff.evaluation.intervals import Estimate, mean_over_people
from pipeline.storage import Storage

RATINGS = "ratings.csv"
COLUMNS = ("rater", "face", "identity", "attack", "condition", "prompt", "score", "time")
SCORES = ("1", "2", "3", "4", "5")
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""Beginnings that a spreadsheet may compute, full-width ones too, with any apostrophes before them."""

Rating = dict[str, str]


def read_ratings(results: Storage) -> list[Rating]:
    """Read ratings.csv; none where there is no such file. Raises StorageError for a damaged one."""
    try:
        text = results.get(RATINGS).decode("utf-8-sig")
    except NotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise StorageError(f"{results.uri_of(RATINGS)} is not UTF-8; repair or delete it") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise StorageError(f"{results.uri_of(RATINGS)} is no CSV file ({error}); repair or delete it") from error
    if not set(COLUMNS) <= set(reader.fieldnames or ()) or any(
        row.get("score") not in SCORES or None in row or None in row.values() for row in rows
    ):
        raise StorageError(
            f"{results.uri_of(RATINGS)}: a row has no score 1 to 5 or lacks a column; repair or delete it"
        )
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _guarded(value: str) -> str:
    """Return a cell's text that no spreadsheet computes; `_plain` gives the value back."""
    return f"'{value}" if FORMULA.match(value) else value


def _plain(value: str) -> str:
    return value[1:] if value.startswith("'") and FORMULA.match(value) else value


def opinions(ratings: Iterable[Rating]) -> dict[tuple[str, str, str], Estimate]:
    """Mean opinion score by attack, condition and prompt; people shown are drawn for the interval."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in ratings:
        own = values.setdefault((row["attack"], row["condition"], row["prompt"]), {})
        own.setdefault(row["identity"], []).append(float(row["score"]))
    return {key: found for key, own in values.items() if (found := mean_over_people(own)) is not None}


def add_rating(results: Storage, rating: Rating) -> None:
    """Append a rating, whoever else appends at the same time; a face counts once a rater. Raises StorageError."""

    def added(rows: list[Rating]) -> list[Rating]:
        known = {(row["rater"], row["face"]) for row in rows}
        return rows if (rating["rater"], rating["face"]) in known else [*rows, rating]

    _change(results, added)


def keep_ratings(results: Storage, kept: Callable[[str], bool]) -> None:
    """Remove the ratings of faces of people who are not `kept`. Raises StorageError."""
    _change(results, lambda rows: [row for row in rows if kept(row["identity"])])


def _change(results: Storage, change: Callable[[list[Rating]], list[Rating]]) -> None:
    for _ in range(50):
        tag = results.tag(RATINGS)
        rows = read_ratings(results) if tag else []
        changed = change(rows)
        if changed == rows:
            return
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows({name: _guarded(row[name]) for name in COLUMNS} for row in changed)
        data = out.getvalue().encode()
        if results.put_if_match(RATINGS, data, tag) if tag else results.put_if_absent(RATINGS, data):
            return
    raise StorageError(f"{results.uri_of(RATINGS)} keeps changing; is another program writing to it?")
