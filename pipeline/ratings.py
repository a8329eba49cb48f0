"""ratings.csv: what people say of generated faces, one row a rating."""

import csv
import io
import logging
from collections.abc import Iterable

from dladiff.errors import DamagedError, NotFoundError, StorageError, TooLargeError
from dladiff.evaluation.intervals import Estimate, mean_over_people
from pipeline.names import shown
from pipeline.storage import Storage

RATINGS = "ratings.csv"
COLUMNS = ("rater", "face", "identity", "attack", "condition", "prompt", "score", "time")
SCORES = ("1", "2", "3", "4", "5")

MOST_BYTES = 64 * 2**20  # of ratings.csv: a rating takes some 200 bytes
log = logging.getLogger(__name__)

Rating = dict[str, str]


def read_ratings(results: Storage) -> list[Rating]:
    """Read ratings.csv; none where there is no such file. Rows that are no rating are left out with a warning.

    Raises DamagedError where the file as a whole cannot be read, StorageError.
    """
    return _parsed(results)[1]


def _parsed(results: Storage) -> tuple[str, list[Rating]]:
    """The text of the file and its ratings."""
    where = shown(results.uri_of(RATINGS))
    try:
        text = results.get(RATINGS, MOST_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    except NotFoundError:
        return "", []
    except UnicodeDecodeError as error:
        raise DamagedError(f"{where} is not UTF-8; repair or delete it") from error
    except csv.Error as error:
        raise DamagedError(f"{where} is not CSV ({error}); repair or delete it") from error
    except TooLargeError as error:
        raise DamagedError(f"{where} has more than {MOST_BYTES} bytes; repair or delete it") from error
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise DamagedError(f"{where} lacks a column of {', '.join(COLUMNS)}; repair or delete it")
    good = [row for row in rows if row["score"] in SCORES and None not in row and None not in row.values()]
    if len(good) < len(rows):
        log.warning("%s: left out %d rows that have no score 1 to 5 or lack a column", where, len(rows) - len(good))
    return text, good


def opinions(ratings: Iterable[Rating]) -> dict[tuple[str, str, str], Estimate]:
    """Mean opinion score by attack, condition and prompt; people shown are drawn for the interval."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in ratings:
        own = values.setdefault((row["attack"], row["condition"], row["prompt"]), {})
        own.setdefault(row["identity"], []).append(float(row["score"]))
    return {key: found for key, own in values.items() if (found := mean_over_people(own)) is not None}


def add_rating(results: Storage, rating: Rating) -> None:
    """Append a rating, whoever else appends at the same time; a face counts once a rater. Raises StorageError."""
    for _ in range(50):
        tag = results.tag(RATINGS)
        text, rows = _parsed(results) if tag else ("", [])
        if any((row["rater"], row["face"]) == (rating["rater"], rating["face"]) for row in rows):
            return
        out = io.StringIO(text or f"{','.join(COLUMNS)}\r\n", newline="")  # what is there stays as it is
        names = next(csv.reader(out))
        out.seek(0, io.SEEK_END)
        if text and not text.endswith("\n"):
            out.write("\r\n")
        csv.DictWriter(out, names).writerow(rating)
        data = out.getvalue().encode()
        if results.put_if_match(RATINGS, data, tag) if tag else results.put_if_absent(RATINGS, data):
            return
    raise StorageError(f"{results.uri_of(RATINGS)} keeps changing; is another program writing to it?")
