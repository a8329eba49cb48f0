"""Scores of the pictures and photos of one attack on one person, by every metric. `summaries` averages over people."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels
from dladiff.evaluation.evaluator import Embeddings, Evaluator, cosines
from dladiff.evaluation.metrics import METRICS
from dladiff.evaluation.metrics.record import Generated, Preprocessed, Stored
from dladiff.faces.image_network import ImageNetwork

Scores = dict[str, Any]
"""What the metrics store of one picture or photo."""


class FeatureNetwork(Protocol):
    """A network whose features FID compares."""

    name: str

    def __call__(self, picture: Pixels) -> NDArray[np.float64]:
        """Return `d` features of one picture."""


class SafetyChecker(Protocol):
    """Flags pictures that are not safe for work."""

    def __call__(self, pictures: Sequence[Pixels]) -> list[bool]:
        """Return one flag per picture."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks that the metrics use. If a network is missing, its metric stays empty."""

    evaluator: Evaluator
    features: FeatureNetwork
    fiqa: ImageNetwork | None = None
    lpips: ImageNetwork | None = None
    safety: SafetyChecker | None = None


def generated_rows(
    pictures: Sequence[Pixels],
    reference: Embeddings,
    originals: Embeddings,
    networks: Networks,
    rescores: Mapping[str, Callable[[Pixels], Pixels]] | None = None,
) -> list[Scores]:
    """Return one row per generated picture with the values that the metrics store.

    `reference` is the mean embedding of the clean references, `originals` that of the attacker's photos before
    protection. `rescores` are preprocessings of the pictures by name: after each, similarity and face are measured
    again and stored under `rescored`.
    """

    def subject(picture: Pixels) -> Generated:
        embedded = networks.evaluator.embed(picture)
        return Generated(
            picture=picture,
            face=embedded is not None,
            to_references=cosines(embedded, reference),
            to_originals=cosines(embedded, originals),
            networks=networks,
        )

    rows = []
    for picture in pictures:
        row = _measured("generated", subject(picture))
        again = {name: subject(function(picture)) for name, function in (rescores or {}).items()}
        rescored = {name: _measured("generated", one, rescored=True) for name, one in again.items()}
        rows.append(row | ({"rescored": rescored} if rescored else {}))
    return rows


def protected_row(
    original: Pixels,
    preprocessed: Pixels,
    protected: Pixels | None,
    networks: Networks,
    reference: Embeddings | None = None,
) -> Scores:
    """Compare the attacker's version of one photo (`preprocessed`) with its original.

    It is also compared with `reference`, the mean embedding of clean photos that the attacker does not have.
    `original_face` and `face` tell whether the original and the preprocessed photo have a face. With `protected`, the
    stored photo, the row also has `quality`.
    """
    before = networks.evaluator.embed(original)
    same = np.array_equal(original, preprocessed)
    after = before if same or before is None else networks.evaluator.embed(preprocessed)
    cosine = {} if before is None else cosines(after, before.embeddings)
    row = {"original_face": before is not None, "face": after is not None}
    to_references = {} if before is None else cosines(after, reference or {})
    subject = Preprocessed(to_original=cosine, to_references=to_references, networks=networks)
    row |= _measured("preprocessed", subject)
    if protected is None:
        return row
    boxes = [face.box for face in before.faces] if before else []
    return row | {"quality": quality_row(original, protected, boxes, networks)}


def quality_row(original: Pixels, protected: Pixels, boxes: Sequence[tuple[float, ...]], networks: Networks) -> Scores:
    """Measure the visible quality of one stored photo. `boxes` are the faces as (x0, y0, x1, y1), px."""
    faces = np.zeros(original.shape[:2], np.bool_)
    for x0, y0, x1, y1 in boxes:
        faces[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)] = True
    pair: dict[str, Pixels] = {"original": original, "protected": protected}
    return _measured("stored", Stored(**pair, faces=faces, boxes=boxes, networks=networks))


def _measured(of: str, subject: Generated | Preprocessed | Stored, *, rescored: bool = False) -> Scores:
    metrics = (m for m in METRICS.values() if m.of == of and (m.rescored or not rescored))
    return {m.entry: m.measure(subject) for m in metrics if m.measure is not None}


def features_of(pictures: Sequence[Pixels], network: FeatureNetwork) -> NDArray[np.float32]:
    """Return n x d features for FID."""
    return np.stack([network(picture) for picture in pictures]).astype(np.float32)
