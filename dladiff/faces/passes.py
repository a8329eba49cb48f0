"""Detector passes: over whole photos, over tiles of large photos, and near a face that is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels
from dladiff.diffusion.bundle import file_sha256
from dladiff.faces import pyramid
from dladiff.faces.boxes import Face, Found, area, distinct

SMALL_PHOTO = 800
"""Longer side up to which passes over the whole photo find all its faces, pixels: 64 px are 41 detector pixels."""
NEAR_SIDE = 4
"""Side of the view around a face in which `passes` looks, in sides of its box."""
SAME_SCALE_SIDE = 192
"""Side of the view around a face at a whole photo's scale, detector pixels."""
UNSEEN = 6
"""Faces smaller than this are found by no pass, detector pixels."""

Raw = tuple[NDArray[Any], NDArray[Any]]


class Detector(Protocol):
    """A deterministic face detector."""

    @property
    def name(self) -> str:
        """Short name for reports."""

    @property
    def sha256(self) -> str:
        """Digest of the weights' file."""

    @property
    def licence(self) -> str:
        """Licence of the weights."""

    def detect(self, rgb: Pixels) -> list[Face]:
        """Return the faces of an RGB photo, largest first."""

    def passes(self, rgb: Pixels) -> list[list[Face]]:
        """Return the faces found by each detector pass: each size and margin at which the detector is commonly run."""

    def passes_near(self, rgb: Pixels, faces: Sequence[Face]) -> list[list[list[Face]]]:
        """Return, for each of these faces, what each detector pass finds near it.

        In a large photo the passes look at the face's neighbourhood, at the sizes that `passes` gives a photo of it
        alone, and at the scales that `passes` gives the whole photo. The number and order of passes of a face depend
        on its box and the photo's size only.
        """


class DetectorPass(NamedTuple):
    """Size, margin and sampling of a detector's input."""

    side: int
    """Side of the square input, pixels."""
    margin: float
    """Margin added on each side, relative to the photo's side."""
    plain: bool = False
    """InsightFace's preprocessing: black margin, bilinear sampling. Otherwise a grey margin and area sampling."""

    def scale(self, rgb: Pixels) -> float:
        """Return the scale of a photo in this pass."""
        height, width = rgb.shape[:2]
        return float(self.side / (max(height, width) * (1 + 2 * self.margin)))


class MultiPassDetector:
    """Detects with a narrow and a wide margin: a face that fills the photo is found only with the wide one."""

    name: str
    licence: str
    merged_passes: tuple[DetectorPass, ...]
    """Passes whose faces `detect` merges."""
    separate_passes: tuple[DetectorPass, ...]
    """Passes whose faces `passes` returns separately."""
    finest: float
    """Scale of the finest tiles of large photos."""

    def __init__(self, path: Path, min_face_px: float, threshold: float) -> None:
        self.sha256 = file_sha256(path)
        self.min_face_px, self.threshold = min_face_px, threshold

    def detect(self, rgb: Pixels) -> list[Face]:
        """Return the faces of an RGB photo, largest first, merged over passes; boxes are clipped to the photo."""
        large = max(rgb.shape[:2]) > SMALL_PHOTO
        threshold = self.threshold * (pyramid.CANDIDATE if large else 1)
        found = [self._detect_once(rgb, settings, threshold) for settings in self.merged_passes]
        if not large:
            return self._faces(np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found]), rgb)
        whole = [(f, settings.scale(rgb)) for f, settings in zip(found, self.merged_passes, strict=True)]
        return self._faces(*pyramid.search(rgb, whole, self._candidates, self.threshold, self.finest), rgb)

    def passes(self, rgb: Pixels) -> list[list[Face]]:
        """Return the faces found by each of `separate_passes`."""
        return [self._faces(*self._detect_once(rgb, s, self.threshold), rgb) for s in self.separate_passes]

    def passes_near(self, rgb: Pixels, faces: Sequence[Face]) -> list[list[list[Face]]]:
        """Return, for each face, what each of `separate_passes` finds near it, and each at the whole photo's scale."""
        if max(rgb.shape[:2]) <= SMALL_PHOTO:
            return [self.passes(rgb)] * len(faces) if faces else []
        return [self._near(rgb, face) for face in faces]

    def _near(self, rgb: Pixels, face: Face) -> list[list[Face]]:
        side = max(face.box[2] - face.box[0], face.box[3] - face.box[1])
        origin, view = _view(rgb, face, NEAR_SIDE * side)
        found = [self._detect_once(view, settings, self.threshold) for settings in self.separate_passes]
        passes = [self._faces(boxes, marks, rgb, origin) for boxes, marks in found]
        for settings in self.separate_passes:
            scale = settings.scale(rgb)
            if side * scale < UNSEEN:
                continue
            origin, view = _view(rgb, face, max(SAME_SCALE_SIDE / scale, NEAR_SIDE * side))
            size = -(-round(max(view.shape[:2]) * scale) // 32) * 32
            passes.append(self._faces(*self._detect_at(view, scale, (0, 0), size, settings.plain), rgb, origin))
        return passes

    def _faces(
        self, boxes: NDArray[np.float64], landmarks: NDArray[np.float64], rgb: Pixels, origin: tuple[int, int] = (0, 0)
    ) -> list[Face]:
        """Return the distinct usable faces of candidates in a view of the photo with this origin, largest first."""
        height, width = rgb.shape[:2]
        landmarks = landmarks + origin
        boxes[:, :4] = np.clip(boxes[:, :4] + (origin * 2), 0, [width, height, width, height])
        faces = [Face.of(boxes[i], landmarks[i]) for i in distinct(boxes) if self._usable(boxes[i], landmarks[i])]
        return sorted(faces, key=lambda face: (-area(face.box), face.box))

    def _usable(self, box: NDArray[np.float64], landmarks: NDArray[np.float64]) -> bool:
        side = min(box[2] - box[0], box[3] - box[1])
        spread = np.ptp(landmarks, axis=0).max()
        return bool(np.isfinite(landmarks).all() and side >= self.min_face_px and box[4] >= self.threshold and spread)

    def _detect_once(self, rgb: Pixels, settings: DetectorPass, threshold: float) -> Found:
        height, width = rgb.shape[:2]
        scale = settings.scale(rgb)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (int(settings.margin * side) for side in inner)
        return self._detect_at(rgb, scale, (left, top), settings.side, settings.plain, threshold)

    def _detect_at(
        self,
        rgb: Pixels,
        scale: float,
        origin: tuple[int, int],
        side: int,
        plain: bool,
        threshold: float | None = None,
    ) -> Found:
        """Return the candidates of an image that is scaled and placed in a square of `side` pixels."""
        height, width = rgb.shape[:2]
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        sampling = cv2.INTER_AREA if scale < 1 and not plain else cv2.INTER_LINEAR
        left, top = origin
        padded = np.full((side, side, 3), 0 if plain else pyramid.GREY, dtype=np.uint8)
        padded[top : top + inner[1], left : left + inner[0]] = cv2.resize(rgb, inner, interpolation=sampling)
        ((boxes, landmarks),) = self._candidates([padded], self.threshold if threshold is None else threshold)
        scales = np.array([inner[0] / width, inner[1] / height])
        boxes[:, :4] = ((boxes[:, :4].reshape(-1, 2, 2) - origin) / scales).reshape(-1, 4)
        return boxes, (landmarks - origin) / scales

    def _candidates(self, images: Sequence[Pixels], threshold: float) -> list[Found]:
        found = self._run(images, threshold)
        return [(b.astype(np.float64).reshape(-1, 5), m.astype(np.float64).reshape(-1, 5, 2)) for b, m in found]

    def _run(self, images: Sequence[Pixels], threshold: float) -> list[Raw]:
        """Return the network's boxes with scores and landmarks for images of one size."""
        raise NotImplementedError


def _view(rgb: Pixels, face: Face, side: float) -> tuple[tuple[int, int], Pixels]:
    """Return the origin and pixels of the square of `side` pixels around a face, clipped to the photo."""
    (x0, x1), (y0, y1) = (
        (max(0, round(middle - side / 2)), min(length, round(middle + side / 2)))
        for middle, length in (
            ((face.box[0] + face.box[2]) / 2, rgb.shape[1]),
            ((face.box[1] + face.box[3]) / 2, rgb.shape[0]),
        )
    )
    return (x0, y0), rgb[y0:y1, x0:x1]
