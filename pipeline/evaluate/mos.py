"""Mean opinion scores: the faces that raters see, in random order, and the summary of their ratings."""

import hashlib
import random
from collections.abc import Iterable, Mapping
from typing import Any

from dladiff.core.arrays import Pixels
from dladiff.errors import ConfigError, NotFoundError, StorageError
from dladiff.evaluation.ratings import SCALE, krippendorff_alpha
from pipeline.evaluate.page import MAX_FACE_PIXELS
from pipeline.evaluate.ratings import FACES_SHEET, Rating, Sheet, add_rating, opinions, read_ratings
from pipeline.evaluate.results import sound_rows
from pipeline.records.commit import now
from pipeline.records.schema import NO_PARQUET, RESULTS, columns, parquet
from pipeline.sources.decode import decode
from pipeline.storage.base import Storage

FACES = 50
"""Faces of each method and attack, as in the DLADiff paper (section 7.2)."""

Face = dict[str, str]


def faces_of(results: Storage, max_faces: int = FACES, seed: int = 0) -> list[Face]:
    """Draw at most `max_faces` generated faces of each attack and condition, with `seed`.

    They come from the rows of the last tables: main base model, first prompt, no preprocessing, all photos protected.
    Raises ConfigError: there is no such face.
    """
    groups: dict[tuple[str, str], list[Face]] = {}
    keys, base = _last_rows(results)
    for _, record in sound_rows(results, keys):
        main = {"status": "done", "preprocessing": "none", "share": 100, "base": base}
        if any(record.get(name) != value for name, value in main.items()):
            continue
        prompt = next(iter(record["prompts"]), "")
        about = {name: record[name] for name in ("identity", "attack", "condition")} | {"prompt": prompt}
        own = groups.setdefault((record["attack"], record["condition"]), [])
        own += [about | {"face": key} for key in record["faces"].get(prompt, ())]
    rng = random.Random(seed)
    chosen = [face for _, own in sorted(groups.items()) for face in rng.sample(own, min(max_faces, len(own)))]
    if not chosen:
        raise ConfigError(
            [
                f"{results.uri} holds no generated faces of fully protected photos without preprocessing: run `dladiff "
                "evaluate` with --kept 1 or more, and with new --results if these already hold rows"
            ]
        )
    return chosen


def _last_rows(results: Storage) -> tuple[list[str], str]:
    """Return the storage keys of the records in results.parquet, and their main base model."""
    try:
        names = ["key", "base"]
        rows = parquet(results.get("results.parquet"), columns(RESULTS, names)).read(columns=names).to_pylist()
    except NotFoundError as error:
        raise ConfigError(
            [f"{results.uri} holds no results.parquet: run `dladiff evaluate` first (or with --tables-only)"]
        ) from error
    except NO_PARQUET as error:
        where = results.uri_of("results.parquet")
        raise StorageError(f"{where} cannot be read; run `dladiff evaluate` with --tables-only") from error
    keys = sorted({f"rows/{row['key']}.json" for row in rows} & {entry.key for entry in results.list("rows/")})
    return keys, rows[0]["base"] if rows else ""


class Session:
    """The faces to rate, and the storage of the ratings. Raters do not see the method of a face."""

    sheet: Sheet = FACES_SHEET
    title = "Rate generated faces"
    scale: Mapping[int, str] = SCALE
    """Answer's number to its meaning; the page shows them as buttons."""

    def __init__(self, results: Storage, faces: list[Face]) -> None:
        """Give each face an id: a hash, which hides the method and is the same in every session."""
        self.results = results
        unit = self.sheet.unit
        self.faces = {hashlib.sha256(face[unit].encode()).hexdigest()[:20]: face for face in faces}

    def order(self, rater: str) -> list[str]:
        """Return the ids of the faces in a random order that depends on the rater."""
        order = sorted(self.faces)
        random.Random(f"order/{rater}").shuffle(order)
        return order

    def next(self, rater: str) -> dict[str, Any]:
        """Return the id of the next face (None at the end), and the numbers of rated faces and of all faces."""
        unit = self.sheet.unit
        rated = {row[unit] for row in read_ratings(self.results, self.sheet) if row["rater"] == rater}
        left = [face_id for face_id in self.order(rater) if self.faces[face_id][unit] not in rated]
        return {"face": left[0] if left else None, "rated": len(self.faces) - len(left), "faces": len(self.faces)}

    def rate(self, rater: str, face: str, score: int) -> dict[str, Any]:
        """Store an answer, unless this rater has given one, and return `next`.

        `score`: number of the answer, from 1. Raises KeyError (unknown face), ValueError (unknown answer).
        """
        if not 1 <= score <= len(self.sheet.answers):
            raise ValueError("no such answer")
        answer = {self.sheet.answer: self.sheet.answers[score - 1]}
        rating: Rating = self.faces[face] | {"rater": rater, "time": now()} | answer
        add_rating(self.results, rating, self.sheet)
        return self.next(rater)

    def picture(self, kind: str, face: str) -> Pixels:
        """Return the pixels of a kind of picture ("face"). Raises KeyError (unknown kind or face), StorageError."""
        if kind != "face":
            raise KeyError(kind)
        return decode(self.results.get(self.faces[face]["face"]), max_pixels=MAX_FACE_PIXELS, min_side=1).pixels


def summary(results: Storage) -> list[dict[str, Any]]:
    """Return the mean opinion score of each attack, condition and prompt, with its interval and counts.

    `alpha` is the raters' agreement, Krippendorff's alpha (ordinal), over all faces of the attack. It is None if no
    face has two raters.
    """
    ratings = read_ratings(results)
    rows = []
    for (attack, condition, prompt), mean in sorted(opinions(ratings).items()):
        own = [r for r in ratings if (r["attack"], r["condition"], r["prompt"]) == (attack, condition, prompt)]
        rows.append(
            {
                "attack": attack,
                "condition": condition,
                "prompt": prompt,
                "mos": mean.value,
                "low": mean.low,
                "high": mean.high,
                "ratings": mean.n,
                "faces": len({r["face"] for r in own}),
                "people": mean.people,
                "raters": len({r["rater"] for r in own}),
                "alpha": agreement(r for r in ratings if r["attack"] == attack),
            }
        )
    return rows


def agreement(ratings: Iterable[Rating]) -> float | None:
    """Return Krippendorff's alpha over the rated faces."""
    units: dict[str, list[float]] = {}
    for row in ratings:
        units.setdefault(row["face"], []).append(float(row["score"]))
    return krippendorff_alpha(units)
