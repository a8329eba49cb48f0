"""What people are asked to rate and what they said: generated faces in random order, mean opinion scores."""

import hashlib
import random
from collections.abc import Iterable
from typing import Any

from dladiff.errors import ConfigError, NotFoundError, StorageError
from dladiff.evaluation.ratings import krippendorff_alpha
from pipeline.evaluate.ratings import Rating, add_rating, opinions, read_ratings
from pipeline.evaluate.results import sound_rows
from pipeline.records.commit import now
from pipeline.records.schema import NO_PARQUET, RESULTS, columns, parquet
from pipeline.storage.base import Storage

FACES = 50  # of each method and attack, as the paper asked its ten raters

Face = dict[str, str]


def faces_of(results: Storage, most: int = FACES, seed: int = 0) -> list[Face]:
    """List generated faces, at most `most` of each attack and condition, drawn with `seed`.

    Only rows that the last tables rest on count, and of those the main base model and prompt, no preprocessing, all
    photos protected. Raises ConfigError where there are none.
    """
    groups: dict[tuple[str, str], list[Face]] = {}
    keys, base = _last_question(results)
    for _, record in sound_rows(results, keys):
        main = {"status": "done", "preprocessing": "none", "share": 100, "base": base}
        if any(record.get(name) != value for name, value in main.items()):
            continue
        prompt = next(iter(record["prompts"]), "")
        about = {name: record[name] for name in ("identity", "attack", "condition")} | {"prompt": prompt}
        own = groups.setdefault((record["attack"], record["condition"]), [])
        own += [about | {"face": key} for key in record["faces"].get(prompt, ())]
    draw = random.Random(seed)
    chosen = [face for _, own in sorted(groups.items()) for face in draw.sample(own, min(most, len(own)))]
    if not chosen:
        raise ConfigError(
            [
                f"{results.uri} holds no generated faces of fully protected photos without preprocessing: run `dladiff "
                "evaluate` with --kept 1 or more, into other --results where rows are there already"
            ]
        )
    return chosen


def _last_question(results: Storage) -> tuple[list[str], str]:
    """Return the keys of the records that results.parquet rests on, and their main base model."""
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
    """The faces to rate and where the ratings go. A rater never sees which method a face is of."""

    def __init__(self, results: Storage, faces: list[Face]) -> None:
        """Each face is known to the page by a sign that tells nothing and is the same in every session."""
        self.results = results
        self.faces = {hashlib.sha256(face["face"].encode()).hexdigest()[:20]: face for face in faces}

    def order(self, rater: str) -> list[str]:
        """Return the signs of the faces in this rater's own random order."""
        order = sorted(self.faces)
        random.Random(f"order/{rater}").shuffle(order)
        return order

    def next(self, rater: str) -> dict[str, Any]:
        """Return the sign of the next face and how many are rated; `face` is None at the end."""
        rated = {row["face"] for row in read_ratings(self.results) if row["rater"] == rater}
        left = [sign for sign in self.order(rater) if self.faces[sign]["face"] not in rated]
        return {"face": left[0] if left else None, "rated": len(self.faces) - len(left), "faces": len(self.faces)}

    def rate(self, rater: str, face: str, score: int) -> dict[str, Any]:
        """Store a rating; a face counts once a rater. Returns `next`. Raises KeyError: no face of this session."""
        rating: Rating = self.faces[face] | {"rater": rater, "score": str(score), "time": now()}
        add_rating(self.results, rating)
        return self.next(rater)


def summary(results: Storage) -> list[dict[str, Any]]:
    """Mean opinion score of each attack, condition and prompt with its interval, raters, and agreement.

    Agreement is Krippendorff's alpha (ordinal) over all faces of an attack; None with fewer than two raters of a face.
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
    """Krippendorff's alpha over the faces rated."""
    units: dict[str, list[float]] = {}
    for row in ratings:
        units.setdefault(row["face"], []).append(float(row["score"]))
    return krippendorff_alpha(units)
