"""Detected faces, and the overlap of their boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BoxLike = Sequence[float] | NDArray[np.float64]
"""x0, y0, x1, y1."""
Found = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Candidates of one detector pass: n x 5 (x0, y0, x1, y1, score) and n x 5 x 2 landmarks."""
SAME_FACE = 0.4
"""IoU at which two candidates count as one face (InsightFace's threshold)."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """One detected face, in photo pixels."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1, inside the photo."""
    landmarks: NDArray[np.float64]
    """5 x 2."""
    score: float
    """The detector's confidence in [0, 1]."""

    @classmethod
    def of(cls, box: NDArray[np.float64], landmarks: NDArray[np.float64]) -> "Face":
        """Return the face of a candidate: x0, y0, x1, y1, score and 5 x 2 landmarks."""
        x0, y0, x1, y1, score = (float(v) for v in box)
        return cls(box=(x0, y0, x1, y1), landmarks=landmarks, score=score)


def distinct(boxes: NDArray[np.float64]) -> list[int]:
    """Return the indices of n x 5 boxes that non-maximum suppression keeps, best score first."""
    kept: list[int] = []
    for i in np.argsort(-boxes[:, 4], kind="stable"):
        if all(iou(boxes[i], boxes[j]) < SAME_FACE for j in kept):
            kept.append(int(i))
    return kept


def area(box: BoxLike) -> float:
    """Return the area of a box; 0 if it is empty."""
    return float(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]))


def iou(a: BoxLike, b: BoxLike) -> float:
    """Return the intersection over union of two boxes x0, y0, x1, y1; 0 if both are empty."""
    a, b = np.asarray(a), np.asarray(b)
    intersection = area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])]))
    union = area(a) + area(b) - intersection
    return intersection / union if union > 0 else 0.0
