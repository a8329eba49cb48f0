"""Search of large photos for faces that are small in them: overlapping tiles at several scales, then a closer look.

The tiles are searched at a low threshold. Each candidate is looked at again in a window of its own, where it has the
size at which the detector places landmarks best, and turned where that helps. Only what the window confirms above the
detector's threshold is a face. So the expensive part, the tiles, needs no rotated passes, and textures give no more
faces than the window does.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels
from dladiff.faces.boxes import SAME_FACE, Found

Run = Callable[[Sequence[Pixels], float], list[Found]]
"""The detector's network on images of one size: what it finds in each above a threshold, in the image's pixels."""
BATCH = 8
"""Tiles that are in memory at a time."""
GREY = 127
"""Level of the margin beyond the photo."""
TILE = 640
"""Side of a tile, detector pixels."""
OVERLAP = 160
"""Overlap of neighbouring tiles, detector pixels: a face up to this size is whole in one of them."""
EDGE = 32
"""Grey beyond the photo's edge, detector pixels."""
LEVEL = 4
"""Ratio of the scales of two levels. A face between 32 and 32 * LEVEL detector pixels is found in any of them."""
CANDIDATE = 0.4
"""Threshold of candidates relative to the detector's; measured in docs/benchmarks.md."""
MAX_CANDIDATES = 500
"""Candidates of a photo that are looked at again, best score first. Limits the time for a photo full of texture."""
CONFIRMED = 0.2
"""Share of the distance from the detector's threshold to 1 that a window's score must exceed it by: at a threshold of
0.5 that is 0.6. SCRFD scored textures up to 0.57 and faces from 0.71 (docs/benchmarks.md)."""
CUT = 2.0
"""A candidate this near to an inner border of its tile is cut by it, detector pixels."""
CLEAR = 32
"""Height of a face in detector pixels from which the whole photo's upright faces need no second look."""
WINDOW = 256
"""Side of a window, detector pixels."""
BEST = 96
"""Height of the candidate in its window, detector pixels."""
SURE = 0.7
"""Score of an upright face from which its window is not turned."""
TURN = 35.0
"""Turn of the further windows, degrees: leaves at most 10 to 25 of a face that is turned by up to 60."""
UPRIGHT = 20.0
"""Largest tilt of the eyes that counts as upright, degrees."""
NEAR = 0.4
"""Distance within which a window's face is the candidate, in heights of the candidate."""


INSIDE = 0.7
"""Share of a box inside a known face from which it can be a part of that face."""
PART = 1 / 16
"""Smallest part of a face that looks like a face, in areas of the face: smaller boxes are people before a poster."""


class Candidate(NamedTuple):
    """What a pass over the whole photo or a tile found, in photo pixels."""

    box: NDArray[np.float64]
    """x0, y0, x1, y1, score."""
    landmarks: NDArray[np.float64]
    whole: bool
    """Found above the detector's threshold in a pass over the whole photo: kept even if a window does not confirm."""
    clear: bool
    """Needs no second look."""


def search(rgb: Pixels, whole: list[tuple[Found, float]], run: Run, threshold: float, finest: float) -> Found:
    """Return the faces of a photo.

    `whole`: what passes over the whole photo found from CANDIDATE times the threshold up, and their scales. `finest`:
    scale of the finest tiles.
    """
    candidates = [c for found, scale in whole for c in _whole(found, scale, threshold)]
    for scale in levels(max(rgb.shape[:2]), finest):
        candidates += tile_candidates(rgb, scale, run, CANDIDATE * threshold)
    confirmed = threshold + CONFIRMED * (1 - threshold)
    candidates.sort(key=lambda c: (not c.clear, -c.box[4]))
    boxes: list[NDArray[np.float64]] = []
    landmarks: list[NDArray[np.float64]] = []
    looks = 0
    for candidate in candidates:
        spent = looks >= MAX_CANDIDATES
        if (spent and not candidate.whole) or _known(candidate.box, boxes):
            continue
        face = (candidate.box, candidate.landmarks)
        if not (candidate.clear or spent):
            looks += 1
            closer = closer_look(rgb, candidate, run, confirmed)
            if closer is None and not candidate.whole:
                continue
            face = closer or face
        if not _known(face[0], boxes):
            boxes.append(face[0])
            landmarks.append(face[1])
    return np.array(boxes).reshape(-1, 5), np.array(landmarks).reshape(-1, 5, 2)


def levels(side: int, finest: float) -> list[float]:
    """Return the scales of the tiles for a photo of this longer side, pixels; the whole photo covers the rest."""
    scales = [finest]
    while scales[-1] / LEVEL * side > TILE:
        scales.append(scales[-1] / LEVEL)
    return scales


def tile_candidates(rgb: Pixels, scale: float, run: Run, threshold: float) -> Iterator[Candidate]:
    """Yield what the tiles of one scale find, except faces that an inner border of a tile cuts."""
    height, width = rgb.shape[:2]
    spans = list(product(_spans(width, scale), _spans(height, scale)))
    for batch in (spans[i : i + BATCH] for i in range(0, len(spans), BATCH)):
        tiles = [_tile(rgb, across, down, scale) for across, down in batch]
        for ((x0, x1), (y0, y1)), tile, (boxes, landmarks) in zip(batch, tiles, run(tiles, threshold), strict=True):
            size = np.array(tile.shape[1::-1])
            factor = size / (x1 - x0, y1 - y0)
            inner = np.array([x0 > 0, y0 > 0, x1 < width, y1 < height])
            margins = np.concatenate([boxes[:, :2], size - boxes[:, 2:4]], axis=1)
            boxes[:, :4] = (boxes[:, :4].reshape(-1, 2, 2) / factor + (x0, y0)).reshape(-1, 4)
            for i in np.flatnonzero(~((margins <= CUT) & inner).any(axis=1)):
                yield Candidate(boxes[i], landmarks[i] / factor + (x0, y0), whole=False, clear=False)


def closer_look(rgb: Pixels, candidate: Candidate, run: Run, threshold: float) -> Found | None:
    """Return the candidate's box and landmarks in a window around it, or None if no window confirms it."""
    best: Found | None = None
    for turn in (0.0, -TURN, TURN):
        found = _in_window(rgb, candidate.box, turn, run, threshold)
        if found is None:
            continue
        if turn == 0 and found[0][4] >= SURE and abs(tilt(found[1])) <= UPRIGHT:
            return found
        if best is None or found[0][4] > best[0][4]:
            best = found
    return best


def tilt(landmarks: NDArray[np.float64]) -> float:
    """Return the angle of the line between the eyes, degrees."""
    across, down = landmarks[1] - landmarks[0]
    return float(np.degrees(np.arctan2(down, across)))


def padded(rgb: Pixels, x0: int, y0: int, x1: int, y1: int) -> Pixels:
    """Return a rectangle of the photo, grey beyond its edges."""
    height, width = rgb.shape[:2]
    inside = rgb[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
    beyond = (max(0, -y0), max(0, y1 - height), max(0, -x0), max(0, x1 - width))
    if not any(beyond):
        return inside
    return np.asarray(cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_CONSTANT, value=(GREY,) * 3), np.uint8)


def _known(box: NDArray[np.float64], known: Sequence[NDArray[np.float64]]) -> bool:
    """Return whether a box is a known face's, or a part of one that looks like a face at a finer scale."""
    if not known:
        return False
    others = np.array(known)[:, :4]
    sides = np.minimum(box[2:4], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = np.maximum(sides, 0).prod(axis=1)
    own, areas = (box[2:4] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    same = both >= SAME_FACE * (own + areas - both)
    return bool((same | ((both >= INSIDE * own) & (own >= PART * areas))).any())


def _whole(found: Found, scale: float, threshold: float) -> Iterator[Candidate]:
    for box, landmarks in zip(*found, strict=True):
        sure = bool(box[4] >= threshold)
        clear = sure and (box[3] - box[1]) * scale >= CLEAR and abs(tilt(landmarks)) <= UPRIGHT
        yield Candidate(box, landmarks, sure, clear)


def _spans(length: int, scale: float) -> list[tuple[int, int]]:
    """Return the evenly distributed tiles along one side, in photo pixels, EDGE beyond both ends."""
    edge, tile, overlap = (round(pixels / scale) for pixels in (EDGE, TILE, OVERLAP))
    over = length + 2 * edge - tile
    if over <= 0:
        return [(-edge, length + edge)]
    count = 1 + -(-over // (tile - overlap))
    return [(start, start + tile) for start in (round(over * i / (count - 1)) - edge for i in range(count))]


def _tile(rgb: Pixels, across: tuple[int, int], down: tuple[int, int], scale: float) -> Pixels:
    """Return one tile in detector pixels."""
    (x0, x1), (y0, y1) = across, down
    size = _detector_size(x1 - x0, scale), _detector_size(y1 - y0, scale)
    sampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(padded(rgb, x0, y0, x1, y1), size, interpolation=sampling), np.uint8)


def _detector_size(pixels: int, scale: float) -> int:
    """Return a side of a tile in detector pixels, a multiple of 32 as the networks need."""
    return min(TILE, -(-round(pixels * scale) // 32) * 32)


def _in_window(rgb: Pixels, box: NDArray[np.float64], turn: float, run: Run, threshold: float) -> Found | None:
    """Return the best face near the candidate in a window turned by `turn` degrees, in photo pixels; None if none."""
    centre, side = (box[:2] + box[2:4]) / 2, max(box[2] - box[0], box[3] - box[1], 1.0)
    reach = WINDOW * side / BEST / 2 * (np.sqrt(2) if turn else 1)
    x0, y0 = (int(np.floor(v)) for v in centre - reach)
    span = int(np.ceil(2 * reach))
    size = max(1, round(span * BEST / side))
    scale = size / span
    sampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    view = cv2.resize(padded(rgb, x0, y0, x0 + span, y0 + span), (size, size), interpolation=sampling)
    matrix = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), turn, 1.0)
    matrix[:, 2] += (WINDOW - size) / 2
    window = cv2.warpAffine(view, matrix, (WINDOW, WINDOW), borderMode=cv2.BORDER_CONSTANT, borderValue=(GREY,) * 3)
    ((boxes, landmarks),) = run([np.asarray(window, np.uint8)], threshold)
    middles = (boxes[:, :2] + boxes[:, 2:4]) / 2
    near = np.flatnonzero(np.linalg.norm(middles - WINDOW / 2, axis=1) <= NEAR * BEST)
    if not len(near):
        return None
    i = near[np.argmax(boxes[near, 4])]
    back = np.linalg.inv(matrix[:, :2]).T
    middle, marks = ((points - matrix[:, 2]) @ back / scale + (x0, y0) for points in (middles[i], landmarks[i]))
    # the bounding box of the turned ellipse that the box holds
    half = np.sqrt(((boxes[i, 2:4] - boxes[i, :2]) / 2) ** 2 @ (matrix[:, :2] ** 2)) / scale
    return np.concatenate([middle - half, middle + half, boxes[i, 4:]]), marks
