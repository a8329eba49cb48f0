"""Recall of small and rotated faces in large photos, and false faces on photos without any.

    python -m tests.acceptance.small_faces --detector centerface --megapixels 1 4 12 24 50

The photos are composites: real faces of known boxes and landmarks, scaled and rotated, on textures. A third of the
faces touch the photo's border. A face counts as found at IoU >= IOU with every landmark within LANDMARK of the box's
side. Minutes.
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.faces.boxes import iou
from dladiff.faces.detect import Detector, Face
from dladiff.service import named_detector

IOU = 0.4
LANDMARK = 0.15
"""Largest distance of a landmark, in sides of the box."""
SIZES = (64, 80, 100, 150, 300)
"""Heights of the faces' boxes, pixels."""
ROTATIONS = (0, 15, 30, 45)
"""Degrees in the plane, to either side."""
MAX_FACES = 48  # faces in a photo
MARGIN = 0.6  # of the box's side, kept around a face
FOLDERS = ("celebahq_103", "celebahq_1972", "vggface2_n000050", "metacloak_s1", "distractors")
TEXTURES = ("grass", "gravel", "brick", "noise", "gradient", "foliage", "chelsea", "coffee", "rocket", "hubble")


@dataclass(frozen=True)
class Source:
    """A real face, upright, at its photo's size."""

    photo: Pixels
    box: NDArray[np.float64]
    landmarks: NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """A pasted face."""

    size: int
    rotation: int
    border: bool
    box: NDArray[np.float64]
    landmarks: NDArray[np.float64]


def sources(assets: Path) -> list[Source]:
    """Return the faces of the portraits, with boxes and landmarks by SCRFD at full size."""
    detector = named_detector(str(assets / "detectors" / "det_500m.onnx"), 60, 0.6)
    found = []
    for folder in FOLDERS:
        for path in sorted((assets / "photos" / folder).glob("*.[jp][pn]g")):
            photo = np.array(Image.open(path).convert("RGB"))
            faces = detector.detect(photo)
            if faces and _upright(faces[0]):
                found.append(Source(photo, np.array(faces[0].box), faces[0].landmarks))
    return found


def background(kind: str, height: int, width: int, seed: int) -> Pixels:
    """Return a photo without faces."""
    import skimage.data

    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "gradient":
        ramp = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
        return np.broadcast_to(ramp * np.array([1.0, 0.8, 0.6]), (height, width, 3)).astype(np.uint8)
    if kind == "foliage":
        photo = np.full((height, width, 3), 90, np.uint8)
        for scale in (64, 16, 4):
            rough = rng.integers(0, 256, (height // scale + 2, width // scale + 2, 3), dtype=np.uint8)
            grown = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
            photo = cv2.addWeighted(photo, 0.6, grown, 0.4, 0)
        return photo
    image = np.asarray({"hubble": skimage.data.hubble_deep_field}.get(kind, getattr(skimage.data, kind, None))())
    image = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
    image = cv2.resize(image, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
    image = np.concatenate([image, image[:, ::-1]], 1)
    image = np.concatenate([image, image[::-1]], 0)  # mirrored, so that tiling makes no seams
    times = (-(-height // image.shape[0]), -(-width // image.shape[1]), 1)
    return np.ascontiguousarray(np.tile(image, times)[:height, :width])


def composites(
    megapixels: float, faces: Sequence[Source], each: int, seed: int
) -> Iterator[tuple[Pixels, list[Truth]]]:
    """Yield photos that together hold `each` faces of every size and rotation."""
    rng = np.random.default_rng(seed)
    width = round((megapixels * 1e6 * 3 / 2) ** 0.5)
    height = round(width * 2 / 3)
    wanted = [(size, turn, i % 3 == 0) for size in SIZES for turn in ROTATIONS for i in range(each)]
    rng.shuffle(wanted)
    index = 0
    while wanted:
        kind = TEXTURES[index % 7]
        photo = background(kind, height, width, seed + index)
        truths: list[Any] = []
        taken: list[Any] = []
        left: list[Any] = []
        for size, turn, border in wanted:
            source = faces[int(rng.integers(len(faces)))]
            sign = int(rng.choice([-1, 1]))
            centre = _place(rng, size, bool(border), (height, width), taken) if len(truths) < MAX_FACES else None
            if centre is None:
                left.append((size, turn, border))
                continue
            truths.append(paste(photo, source, int(size), sign * int(turn), centre, bool(border)))
        wanted, index = left, index + 1
        yield photo, truths


def _place(
    rng: np.random.Generator, size: int, border: bool, shape: tuple[int, int], taken: list[tuple[float, ...]]
) -> tuple[float, float] | None:
    """Return a free centre, and note it; None if there is none."""
    reach = size * 1.1
    for _ in range(60):
        low = size * (0.55 if border else 1.1)
        x, y = (float(rng.uniform(low, max(low + 1, side - low))) for side in shape[::-1])
        if border:
            side = int(rng.integers(4))
            x = (low, shape[1] - low)[side] if side < 2 else x
            y = (low, shape[0] - low)[side - 2] if side >= 2 else y
        if all(max(abs(x - a), abs(y - b)) > reach + r for a, b, r in taken):
            taken.append((x, y, reach))
            return x, y
    return None


def paste(
    photo: Pixels, source: Source, size: int, turn: float, centre: tuple[float, float], border: bool = False
) -> Truth:
    """Paste a face into the photo, with a soft edge; the centre is its box's."""
    box = source.box
    side = box[3] - box[1]
    scale = size / side
    middle = (box[:2] + box[2:4]) / 2
    shrunk = cv2.resize(source.photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else 2)
    factor = np.array(shrunk.shape[1::-1]) / source.photo.shape[1::-1]
    reach = int(np.ceil(size * (0.5 + MARGIN)))
    x0, y0 = (int(np.floor(c)) - reach for c in centre)
    matrix = cv2.getRotationMatrix2D(tuple(float(v) for v in middle * factor), turn, 1.0)
    matrix[:, 2] += np.array(centre) - (x0, y0) - middle * factor
    whole = 2 * reach
    patch = cv2.warpAffine(shrunk, matrix, (whole, whole), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    rows, columns = np.mgrid[:whole, :whole] - reach + 0.5
    away = np.hypot(rows, columns) / (size * (0.5 + MARGIN))
    mask = np.clip((1 - away) / 0.15, 0, 1)[..., None]
    top, left = max(0, -y0), max(0, -x0)
    bottom, right = min(whole, photo.shape[0] - y0), min(whole, photo.shape[1] - x0)
    under = photo[y0 + top : y0 + bottom, x0 + left : x0 + right]
    mask, patch = mask[top:bottom, left:right], patch[top:bottom, left:right]
    under[:] = np.round(patch * mask + under * (1 - mask)).astype(np.uint8)
    marks = (source.landmarks * factor) @ matrix[:, :2].T + matrix[:, 2] + (x0, y0)
    half = np.sqrt(((box[2:4] - box[:2]) * scale / 2) ** 2 @ matrix[:, :2] ** 2)  # of the turned ellipse in the box
    placed = np.concatenate([np.array(centre) - half, np.array(centre) + half])
    return Truth(size, abs(round(turn)), border, placed, marks)


def matches(face: Face, truth: Truth) -> bool:
    """Return whether the face is the pasted one: overlap and landmarks."""
    away = np.linalg.norm(face.landmarks - truth.landmarks, axis=1).max()
    return iou(face.box, truth.box) >= IOU and bool(away <= LANDMARK * (truth.box[3] - truth.box[1]))


def false_faces(found: Sequence[Face], truths: Sequence[Truth]) -> int:
    """Return the number of faces that lie on no pasted one, or are a second face on one."""
    hits = [max(range(len(truths)), key=lambda i: iou(f.box, truths[i].box), default=-1) for f in found]
    on = [i for f, i in zip(found, hits, strict=True) if i >= 0 and iou(f.box, truths[i].box) >= 0.2]
    return len(found) - len(set(on))


def recall(detector: Detector, megapixels: float, faces: Sequence[Source], each: int, seed: int) -> dict[Any, Any]:
    """Return counts (found, all) by size, rotation and border; the false faces; the megapixels and seconds."""
    counts: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    false, area, seconds = 0, 0.0, 0.0
    for photo, truths in composites(megapixels, faces, each, seed):
        clock = time.process_time()
        found = detector.detect(photo)
        seconds += time.process_time() - clock
        area += photo.shape[0] * photo.shape[1] / 1e6
        false += false_faces(found, truths)
        for truth in truths:
            hit = any(matches(face, truth) for face in found)
            for key in (truth.size, f"{truth.rotation}°", "border" if truth.border else "inside", "all"):
                counts[key][0] += hit
                counts[key][1] += 1
    return {**counts, "false": false, "MP": area, "seconds": seconds}


def main() -> None:
    """Print a row for each size of photo, then the false faces on photos without any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="centerface", help="centerface, an SCRFD file or a pack")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4, 12, 24, 50])
    parser.add_argument("--each", type=int, default=6, help="faces of each size and rotation")
    parser.add_argument("--empty", type=float, nargs="*", default=[4, 24], help="megapixels of photos without a face")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faces = sources(Path(os.environ.get("DLADIFF_ASSETS", "../shared/assets")))
    detector = named_detector(options.detector, 20, 0.5)
    keys = [*SIZES, *(f"{turn}°" for turn in ROTATIONS), "border", "inside", "all"]
    print("| megapixels |", " | ".join(str(key) for key in keys), "| false faces a megapixel | seconds a megapixel |")
    for megapixels in options.megapixels:
        row = recall(detector, megapixels, faces, options.each, options.seed)
        cells = [f"{row[key][0] / row[key][1]:.2f}" if key in row else "-" for key in keys]
        rates = f"{row['false'] / row['MP']:.3f} | {row['seconds'] / row['MP']:.2f}"
        print(f"| {megapixels:g} |", " | ".join(cells), f"| {rates} |", flush=True)
    for megapixels in options.empty:
        width = round((megapixels * 1e6 * 3 / 2) ** 0.5)
        found = {k: len(detector.detect(background(k, round(width * 2 / 3), width, 1))) for k in TEXTURES}
        rate = sum(found.values()) / megapixels / len(found)
        print(f"no face, {megapixels:g} MP: {rate:.4f} a megapixel", {k: n for k, n in found.items() if n}, flush=True)


def _upright(face: Face) -> bool:
    eyes = face.landmarks[1] - face.landmarks[0]
    frontal = abs(face.landmarks[2, 0] - face.landmarks[:2, 0].mean()) < 0.25 * np.linalg.norm(eyes)
    return bool(abs(np.arctan2(eyes[1], eyes[0])) < np.radians(8) and frontal)


if __name__ == "__main__":
    main()
