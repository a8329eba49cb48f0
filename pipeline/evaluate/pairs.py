"""Pairs of a real photo and a generated picture, which raters call the same person or not, with two kinds of control.

Pairs of the condition `clean` show what unprotected photos give. Pairs of different people show how often raters see
the same person where there is none.
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.errors import ConfigError
from dladiff.evaluation.verification import REFERENCES
from pipeline.evaluate.mos import FACES, Face, Session, faces_of
from pipeline.evaluate.pair_answers import DIFFERENT
from pipeline.evaluate.ratings import PAIRS_SHEET, Sheet
from pipeline.sources import shards
from pipeline.sources.decode import decode
from pipeline.sources.find import find_identities
from pipeline.sources.originals import MAX_PHOTO
from pipeline.storage.base import Storage

SCALE = {1: "The same person", 2: "Different people", 3: "I cannot say"}
"""Number of an answer of PAIRS_SHEET to its text on the page."""
PHOTO_SIDE = 512
"""Longest side in px of a photo on the page; generated pictures are as large."""


def pairs_of(results: Storage, references: Storage, max_faces: int = FACES, seed: int = 0) -> list[Face]:
    """Pair at most `max_faces` faces of each attack and condition with a random photo of the person, drawn with `seed`.

    For each face of clean photos there is also a pair with a photo of another person. `references` has a folder of
    photos for each identity; of sets, the clean ones count. Raises ConfigError: fewer than two people have photos.
    """
    faces = faces_of(results, max_faces, seed)
    photos = _photos(references, {face["identity"] for face in faces})
    if len(photos) < 2:
        raise ConfigError(
            [
                f"--references {references.uri}: photos of {len(photos)} people of the evaluation; pairs need two "
                "people or more, each with a folder that has the identity's name"
            ]
        )
    rng = random.Random(seed)
    pairs = []
    for face in (f for f in faces if f["identity"] in photos):
        pairs.append(_pair(face, face["identity"], rng.choice(photos[face["identity"]]), face["condition"]))
        if face["condition"] == "clean":
            other = rng.choice([name for name in sorted(photos) if name != face["identity"]])
            pairs.append(_pair(face, other, rng.choice(photos[other]), DIFFERENT))
    return pairs


def _pair(face: Face, shown: str, photo: str, condition: str) -> Face:
    return face | {"shown": shown, "photo": photo, "condition": condition, "pair": f"{face['face']} {photo}"}


def _photos(references: Storage, wanted: set[str]) -> dict[str, Sequence[str]]:
    """Return the keys of at most REFERENCES photos of each wanted identity."""
    people = (person for person in find_identities(references) if person.name in wanted)
    return {person.name: [p.key for p in (person.clean or person.photos)[:REFERENCES]] for person in people}


class PairSession(Session):
    """The pairs to answer. Raters do not see which method a picture is from, nor which pairs are controls."""

    sheet: Sheet = PAIRS_SHEET
    title = "The same person or not?"
    scale: Mapping[int, str] = SCALE

    def __init__(self, results: Storage, pairs: list[Face], references: Storage) -> None:
        super().__init__(results, pairs)
        self.references = references

    def picture(self, kind: str, face: str) -> Pixels:
        """Return the pixels of the generated picture ("face") or of the real photo ("photo"), shrunk to PHOTO_SIDE.

        Raises KeyError (unknown kind or pair), PhotoError, StorageError.
        """
        if kind != "photo":
            return super().picture(kind, face)
        pixels = decode(shards.read(self.references, self.faces[face]["photo"], MAX_PHOTO), min_side=1).pixels
        image = Image.fromarray(pixels)
        image.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
        return np.asarray(image).copy()
