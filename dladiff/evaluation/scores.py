"""What every metric measures of one attack on one person, picture by picture; `summaries` takes means over people."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dladiff.core.pixels import Pixels
from dladiff.evaluation.judge import Embeddings, Judge, cosines
from dladiff.evaluation.metrics import METRICS
from dladiff.evaluation.metrics.record import Generated, Shown, Stored
from dladiff.faces.image_network import ImageNetwork

Row = dict[str, Any]


class FeatureNetwork(Protocol):
    """Gives the features of FID."""

    name: str

    def __call__(self, picture: Pixels) -> NDArray[np.float64]:
        """Return `d` features of one picture."""


class SafetyChecker(Protocol):
    """Says of each picture whether it is not safe for work."""

    def __call__(self, pictures: Sequence[Pixels]) -> list[bool]:
        """Return one flag a picture."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What scores pictures. A network that is not there leaves its metric empty, never guessed."""

    judge: Judge
    features: FeatureNetwork
    fiqa: ImageNetwork | None = None
    lpips: ImageNetwork | None = None
    safety: SafetyChecker | None = None


def generated_rows(
    pictures: Sequence[Pixels], reference: Embeddings, originals: Embeddings, networks: Networks
) -> list[Row]:
    """Measure generated pictures one by one: what every metric of them keeps.

    `reference` is the clean reference set, `originals` those of the photos that the attacker used.
    """
    rows = []
    for picture in pictures:
        reading = networks.judge.read(picture)
        subject = Generated(
            picture=picture,
            face=reading is not None,
            to_references=cosines(reading, reference),
            to_originals=cosines(reading, originals),
            networks=networks,
        )
        rows.append(_measured("generated", subject))
    return rows


def protected_row(original: Pixels, shown: Pixels, protected: Pixels | None, networks: Networks) -> Row:
    """Measure one photo as the attacker has it (`shown`), against its original.

    `face` and `original_face` say where one was found; `quality` is there where the stored photo is given.
    """
    first = networks.judge.read(original)
    same = np.array_equal(original, shown)
    then = first if same or first is None else networks.judge.read(shown)
    cosine = {} if first is None else cosines(then, first.embeddings)
    row = {"original_face": first is not None, "face": then is not None}
    row |= _measured("shown", Shown(to_original=cosine, networks=networks))
    if protected is None:
        return row
    boxes = [face.box for face in first.faces] if first else []
    return row | {"quality": quality_row(original, protected, boxes, networks)}


def quality_row(original: Pixels, protected: Pixels, boxes: Sequence[tuple[float, ...]], networks: Networks) -> Row:
    """Measure the visible quality of one stored photo; faces are inside the boxes (x0, y0, x1, y1)."""
    faces = np.zeros(original.shape[:2], np.bool_)
    for x0, y0, x1, y1 in boxes:
        faces[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)] = True
    return _measured("stored", Stored(original=original, protected=protected, faces=faces, networks=networks))


def _measured(of: str, subject: Generated | Shown | Stored) -> Row:
    return {m.entry: m.measure(subject) for m in METRICS.values() if m.of == of and m.measure is not None}


def features_of(pictures: Sequence[Pixels], network: FeatureNetwork) -> NDArray[np.float32]:
    """Return n x d features for FID."""
    return np.stack([network(picture) for picture in pictures]).astype(np.float32)
