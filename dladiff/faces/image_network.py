"""Image networks that users provide as ONNX files: FID features, face quality (FIQA), LPIPS.

If a network is missing, its metric stays empty.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels
from dladiff.diffusion.bundle import file_sha256
from dladiff.errors import ModelError
from dladiff.faces.onnx_session import onnx_session

MAX_BYTES = 512 * 2**20
"""Largest file read."""
SIDE = {"features": 299, "quality": 352}
"""Input side in px for graphs with a free size (Inception's, Efficient-FIQA's); LPIPS takes any size."""
INPUTS = {"features": 1, "quality": 1, "lpips": 2}
"""Number of inputs by role."""


class ImageNetwork:
    """An ONNX network of one RGB image (LPIPS: two), Nx3xHxW, scaled as (value - mean) / std of 0..255 pixels.

    `mean` and `std` are read from the file's metadata. Without them the input range is [-1, 1], as in exports of
    Inception (pytorch-fid) and LPIPS.
    """

    def __init__(self, path: Path | str, role: str) -> None:
        """Load the file for a role of INPUTS. Raises ModelError: missing, too large, damaged, or of another shape."""
        path = Path(path)
        if not path.is_file():
            raise ModelError(f"no {role} network at {path}: name an ONNX file")
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path} is larger than {MAX_BYTES // 2**20} MB; export the network alone")
        try:
            self._session: Any = onnx_session(path)
        except Exception as error:  # onnxruntime raises many classes of its own
            raise ModelError(f"{path} is not a readable ONNX file: {str(error).splitlines()[0]}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != INPUTS[role] or any(len(i.shape) != 4 or i.shape[1] not in (3, "3") for i in inputs):
            raise ModelError(f"{path} is no {role} network: it takes {INPUTS[role]} input(s) Nx3xHxW")
        self.name, self.sha256 = path.stem, file_sha256(path)
        self._names = [i.name for i in inputs]
        self._size = (
            None
            if role == "lpips"
            else tuple(side if isinstance(side, int) else SIDE[role] for side in inputs[0].shape[2:])
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._mean, self._std = (_numbers(metadata.get(key), path, key) for key in ("mean", "std"))

    def __call__(self, picture: Pixels, *others: Pixels) -> NDArray[np.float64]:
        """Return the network's first output, flattened, for one image (LPIPS: two), h x w x 3."""
        feed = {name: self._scaled(p) for name, p in zip(self._names, (picture, *others), strict=True)}
        out: NDArray[np.float64] = np.asarray(self._session.run(None, feed)[0], np.float64).ravel()
        return out

    def measure(self, a: Pixels, b: Pixels) -> float:
        """Return the LPIPS of two images, h x w x 3."""
        return float(self(a, b)[0])

    def _scaled(self, picture: Pixels) -> NDArray[np.float32]:
        if self._size is not None and picture.shape[:2] != self._size:
            height, width = self._size
            sampling = cv2.INTER_AREA if picture.shape[0] > height else cv2.INTER_LINEAR
            picture = np.asarray(cv2.resize(picture, (width, height), interpolation=sampling), np.uint8)
        scaled = (picture.astype(np.float32) - self._mean) / self._std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def _numbers(text: str | None, path: Path, key: str) -> NDArray[np.float32]:
    if text is None:
        return np.full(3, 127.5, np.float32)
    try:
        values = np.array([float(part) for part in text.split(",")], np.float32)
        return np.broadcast_to(values, 3).copy()
    except ValueError as error:
        raise ModelError(f"{path}: its metadata {key!r} is no list of one or three numbers: {text[:40]!r}") from error
