"""Face crops of the training collection: read from its tar, aligned to 112 px and varied at random."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dladiff.faces.detect import alignment_matrix

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One encoded crop, the person it shows and whether that person is held out of training."""

    data: bytes
    person: str
    held_out: bool

    def pixels(self) -> Image:
        """Decode to RGB, [side, side, 3]."""
        bgr = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_COLOR)
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def load_crops(assets: Path) -> tuple[list[Crop], npt.NDArray[np.float64]]:
    """Read every crop of faces/lfw128.tar, and the 2 x 3 matrix that aligns any of them to 112 px.

    Raises OSError where the file is absent.
    """
    with tarfile.open(assets / "faces" / "lfw128.tar") as tar:
        content = {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}
    meta = json.loads(content["meta.json"])
    away = set(meta["held_out"])
    matrix = alignment_matrix(np.asarray(meta["template"], np.float64) * meta["size"])
    crops = [
        Crop(data=content[name], person=person, held_out=bool(held) or person in away)
        for name, person, held in meta["files"]
    ]
    return crops, np.asarray(matrix, np.float64)


def training_crops(assets: Path, most: int) -> tuple[list[Crop], npt.NDArray[np.float64]]:
    """Return at most `most` crops of the people not held out, spread over them, and the matrix of `load_crops`."""
    everything, matrix = load_crops(assets)
    crops = [c for c in everything if not c.held_out]
    return [crops[i] for i in np.linspace(0, len(crops) - 1, min(most, len(crops))).astype(int)], matrix


def mirrored(crops: list[Crop], size: int) -> Iterator[Image]:
    """Decode `size` crops at a time, an even number, to [b, side, side, 3]; every second one is mirrored."""
    for start in range(0, len(crops), size):
        pixels = [c.pixels() for c in crops[start : start + size]]
        yield np.stack([p[:, ::-1] if i % 2 else p for i, p in enumerate(pixels)])


def align(pixels: Image, matrix: npt.NDArray[np.float64]) -> Image:
    """Warp to [112, 112, 3], bilinear, black outside."""
    return np.asarray(cv2.warpAffine(pixels, matrix, (112, 112), flags=cv2.INTER_LINEAR, borderValue=0), np.uint8)


def varied(pixels: Image, matrix: npt.NDArray[np.float64], rng: np.random.Generator) -> Image:
    """Align with a small random similarity, then flip, light, blur, noise and occlude at random."""
    turn = cv2.getRotationMatrix2D((56.0, 56.0), float(rng.normal(0, 3)), float(np.exp(rng.normal(0, 0.03))))
    turn[:, 2] += rng.normal(0, 1.5, 2)
    whole = np.vstack([matrix, [0.0, 0.0, 1.0]])
    crop = align(pixels, turn @ whole)
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    values = crop.astype(np.float32)
    if rng.random() < 0.6:
        middle = values.mean()
        values = (values - middle) * rng.uniform(0.75, 1.25) + middle + rng.uniform(-25, 25)
    if rng.random() < 0.2:
        values = cv2.GaussianBlur(values, (0, 0), float(rng.uniform(0.4, 1.2)))
    if rng.random() < 0.2:
        values = values + rng.normal(0, rng.uniform(1, 6), values.shape).astype(np.float32)
    if rng.random() < 0.1:
        x, y = rng.integers(0, 90, 2)
        w, h = rng.integers(10, 32, 2)
        values[y : y + h, x : x + w] = rng.uniform(0, 255)
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
