"""Selection of the clean set for the static surrogate: the photos with the largest and sharpest faces."""

from collections.abc import Sequence

import cv2
import numpy as np

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import content_digest
from dladiff.faces.detect import Detector, Face

SIDE = 128  # px; sharpness is measured at this size, so that it does not depend on the face's size


def best_photos(photos: Sequence[Pixels], count: int, detector: Detector) -> list[Pixels]:
    """Return the `count` best of h x w x 3 photos in their given order; all photos if there are at most `count`.

    Score of a photo: log of its largest face's side (at most 512 px) plus half the log of the face's sharpness
    (variance of the Laplacian at SIDE px). More than one face halves the side, because the surrogate must learn one
    person. Photos without a face rank last. The score is our own; the paper only says that clean photos are selected.
    """
    if len(photos) <= count:
        return list(photos)
    scores = [_score(photo, detector.detect(photo)) for photo in photos]
    chosen = sorted(range(len(photos)), key=lambda i: (-scores[i], content_digest(photos[i])))[:count]
    return [photos[i] for i in sorted(chosen)]


def _score(photo: Pixels, faces: Sequence[Face]) -> float:
    if not faces:
        return -np.inf
    boxes = [np.asarray(face.box, np.float64) for face in faces]
    sides = [float(min(b[2] - b[0], b[3] - b[1])) for b in boxes]
    largest = int(np.argmax(sides))
    x0, y0, x1, y1 = (max(0, round(v)) for v in boxes[largest])
    crop = photo[y0 : max(y0 + 2, y1), x0 : max(x0 + 2, x1)]
    grey = cv2.cvtColor(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_64F).var())
    side = min(512.0, sides[largest]) / (1 if len(faces) == 1 else 2)
    return float(np.log(max(side, 1.0)) + 0.5 * np.log(max(sharpness, 1e-3)))
