"""What a metric says of itself, and what it is computed from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
Cosines = dict[str, float | None]
"""Encoder to cosine; None without a face."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A generated picture."""

    picture: Pixels
    face: bool
    """Whether the detector finds one."""
    to_references: Cosines
    """Of the largest face, to the mean of the person's clean references."""
    to_originals: Cosines
    """The same, to the originals of the attacker's photos."""
    networks: Any
    """`dladiff.evaluation.scores.Networks`."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A photo as the attacker has it, after preprocessing."""

    to_original: Cosines
    """Empty where the original has no face."""
    networks: Any


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A photo as the output stores it, beside its original."""

    original: Pixels
    protected: Pixels
    faces: NDArray[np.bool_]
    """h x w: inside the face boxes."""
    networks: Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. `measure` runs on the worker; `value` and `reduce` read the stored rows whenever tables are made."""

    name: str
    """Its column in results.parquet."""
    heading: str
    """Its column in the tables."""
    about: str
    """What it is and its unit."""
    place: int
    """Columns stand in this order."""
    of: Literal["generated", "shown", "stored"]
    """What a row measures: class Generated, Shown or Stored."""
    better: Literal["higher", "lower"]
    """Which values speak for the protection."""
    per_encoder: bool = False
    """One value for each encoder of the evaluator."""
    needs: str = ""
    """What a missing network is called in the tables; empty: it needs none beside the evaluator."""
    tables: tuple[str, ...] = ()
    """scores: every table of generated pictures; attack: those of attacks on the main base model; other base: those on
    another; change, less: differences; stored: that of visible quality."""
    counted: bool = False
    """Show how many values it rests on: not every picture has one."""
    digits: int = 3
    entry: str
    """Key of a stored row that it reads; several metrics may share one."""
    measure: Callable[[Any], Any] | None = None
    """What the row keeps under `entry`, from a Generated, Shown or Stored; None where another metric measures it."""
    value: Callable[[Any, str], float | None]
    """(what the row keeps, encoder) to the value of the picture or photo; None where it has none."""
    reduce: Callable[[Sequence[float]], float] | None = None
    """Pictures of one training and prompt to one value; None: each counts."""
    cell: Callable[[Sequence[float]], str] | None = None
    """All values of a method to its cell; None: their mean with an interval over people."""


def plain(kept: Any, _encoder: str) -> float | None:
    """Return a number as it is kept."""
    return None if kept is None else float(kept)


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, or None."""
    return value if math.isfinite(value) else None


def detected(kept: Any, encoder: str) -> float | None:
    """Return an encoder's cosine; None without a face."""
    found: float | None = kept.get(encoder)
    return found


def zero_without_a_face(kept: Any, encoder: str) -> float | None:
    """Return an encoder's cosine, 0 without a face; None where there is nothing to compare with."""
    return (kept[encoder] or 0.0) if encoder in kept else None
