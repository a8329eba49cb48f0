"""The record of a metric, and the inputs that metrics are computed from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels

Cosines = dict[str, float | None]
"""Encoder to cosine; None without a face."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A generated picture."""

    picture: Pixels
    face: bool
    """Whether the detector finds a face."""
    to_references: Cosines
    """Cosines of the largest face to the mean embedding of the person's clean references."""
    to_originals: Cosines
    """Cosines of the largest face to the mean embedding of the attacker's photos before protection."""
    networks: Any
    """`dladiff.evaluation.scores.Networks`."""


@dataclass(frozen=True, kw_only=True)
class Preprocessed:
    """A photo of the attacker after preprocessing."""

    to_original: Cosines
    """Cosines of its largest face to that of the original; empty if the original has no face."""
    to_references: Cosines
    """Cosines of its largest face to the mean embedding of the person's clean references; empty without references."""
    networks: Any


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A stored photo and its original, both h x w x 3."""

    original: Pixels
    protected: Pixels
    faces: NDArray[np.bool_]
    """h x w: True inside the face boxes."""
    boxes: Sequence[tuple[float, ...]]
    """The faces: x0, y0, x1, y1, px."""
    networks: Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric. The worker calls `measure` and stores its result; tables call `value` and `reduce` on stored rows."""

    name: str
    """Column in results.parquet."""
    heading: str
    """Column in the tables."""
    about: str
    """Definition and unit."""
    order: int
    """Position among the columns, ascending."""
    of: Literal["generated", "preprocessed", "stored"]
    """Input of `measure`: class Generated, Preprocessed or Stored."""
    better: Literal["higher", "lower"]
    """Which values are better: for the protection, or for visible quality."""
    per_encoder: bool = False
    """Whether it has one value per encoder of the evaluator."""
    needs: str = ""
    """Reason that tables give if its network is missing; empty: it needs only the evaluator."""
    tables: tuple[str, ...] = ()
    """Kinds of table that have this column. `scores`: all tables of generated pictures; `attack`: attacks on the main
    base model; `other base`: attacks on another; `change`, `difference`: paired differences; `stored`: visible quality;
    `zero-shot photos`, `zero-shot pictures`: the paper's Table 4; `worst`, `worst photos`: the worst preprocessing of
    each person, and of each photo."""
    show_n: bool = False
    """Whether cells show the number of values, because some pictures have none."""
    digits: int = 3
    """Decimals in the tables."""
    entry: str
    """Key of the stored row that it reads; several metrics may share one."""
    measure: Callable[[Any], Any] | None = None
    """Value to store under `entry`, from an object of the class that `of` names; None if another metric stores it."""
    value: Callable[[Any, str], float | None]
    """(stored value, encoder) to the number of this picture or photo, or None if it has none."""
    rescored: bool = False
    """Whether `--rescore` measures it a second time."""
    verifies: bool = False
    """Whether the number is 1 for a value at or above the encoder's threshold and 0 for one below. An encoder without a
    threshold has no number."""
    reduce: Callable[[Sequence[float]], float] | None = None
    """Reduces the numbers of one training and prompt to one; None: each number counts."""
    cell: Callable[[Sequence[float]], str] | None = None
    """Formats all numbers of a method as a cell; None: mean with interval over people."""


def plain(stored: Any, _encoder: str) -> float | None:
    """Return a stored number, or None."""
    return None if stored is None else float(stored)


def finite(value: float) -> float | None:
    """Return the number, or None for infinity and NaN, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def detected(stored: Any, encoder: str) -> float | None:
    """Return an encoder's cosine, or None without a face."""
    cosine: float | None = stored.get(encoder)
    return cosine


def zero_without_face(stored: Any, encoder: str) -> float | None:
    """Return an encoder's cosine, 0 without a face, or None without a face to compare with."""
    return (stored[encoder] or 0.0) if encoder in stored else None


def never_without_face(stored: Any, encoder: str) -> float | None:
    """Return an encoder's cosine, minus infinity without a face, or None without references to compare with."""
    if not stored or encoder not in stored:
        return None
    cosine: float | None = stored[encoder]
    return -math.inf if cosine is None else cosine
