"""Face crops of the training collection: reading, alignment to 112 px and random augmentation."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dladiff.core.arrays import Pixels
from dladiff.faces.detect import alignment_matrix


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One encoded crop, its person, and whether that person is held out of training."""

    data: bytes
    person: str
    held_out: bool

    def pixels(self) -> Pixels:
        """Return the decoded RGB pixels, side x side x 3."""
        bgr = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_COLOR)
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def load_crops(assets: Path) -> tuple[list[Crop], npt.NDArray[np.float64]]:
    """Return all crops of faces/lfw128.tar, and the 2 x 3 matrix that aligns each of them to 112 px.

    Raises OSError if the file is missing.
    """
    with tarfile.open(assets / "faces" / "lfw128.tar") as tar:
        content = {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}
    meta = json.loads(content["meta.json"])
    held_out_people = set(meta["held_out"])
    matrix = alignment_matrix(np.asarray(meta["template"], np.float64) * meta["size"])
    crops = [
        Crop(data=content[name], person=person, held_out=bool(held) or person in held_out_people)
        for name, person, held in meta["files"]
    ]
    return crops, np.asarray(matrix, np.float64)


def training_crops(assets: Path, max_crops: int) -> tuple[list[Crop], npt.NDArray[np.float64]]:
    """Return at most `max_crops` crops, evenly spaced over the people not held out, and the matrix of `load_crops`."""
    all_crops, matrix = load_crops(assets)
    crops = [c for c in all_crops if not c.held_out]
    return [crops[i] for i in np.linspace(0, len(crops) - 1, min(max_crops, len(crops))).astype(int)], matrix


def mirrored(crops: list[Crop], size: int) -> Iterator[Pixels]:
    """Yield `size` decoded crops at a time, b x side x side x 3, every second one mirrored; `size` must be even."""
    for start in range(0, len(crops), size):
        pixels = [c.pixels() for c in crops[start : start + size]]
        yield np.stack([p[:, ::-1] if i % 2 else p for i, p in enumerate(pixels)])


def align(pixels: Pixels, matrix: npt.NDArray[np.float64]) -> Pixels:
    """Return the pixels warped to 112 x 112 x 3, bilinear, black outside."""
    return np.asarray(cv2.warpAffine(pixels, matrix, (112, 112), flags=cv2.INTER_LINEAR, borderValue=0), np.uint8)


def augmented(pixels: Pixels, matrix: npt.NDArray[np.float64], rng: np.random.Generator) -> Pixels:
    """Return an aligned crop, 112 x 112 x 3, with random jitter, flip, lighting, blur, noise and occlusion."""
    jitter = cv2.getRotationMatrix2D((56.0, 56.0), float(rng.normal(0, 3)), float(np.exp(rng.normal(0, 0.03))))
    jitter[:, 2] += rng.normal(0, 1.5, 2)
    homogeneous = np.vstack([matrix, [0.0, 0.0, 1.0]])
    crop = align(pixels, jitter @ homogeneous)
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    values = crop.astype(np.float32)
    if rng.random() < 0.6:
        mean = values.mean()
        values = (values - mean) * rng.uniform(0.75, 1.25) + mean + rng.uniform(-25, 25)
    if rng.random() < 0.2:
        values = cv2.GaussianBlur(values, (0, 0), float(rng.uniform(0.4, 1.2)))
    if rng.random() < 0.2:
        values = values + rng.normal(0, rng.uniform(1, 6), values.shape).astype(np.float32)
    if rng.random() < 0.1:
        x, y = rng.integers(0, 90, 2)
        w, h = rng.integers(10, 32, 2)
        values[y : y + h, x : x + w] = rng.uniform(0, 255)
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
