"""Measure identity encoders on people outside their training data: `python -m dladiff.training.measure --help`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dladiff.core.arrays import Pixels
from dladiff.faces.onnx_session import onnx_session
from dladiff.training.data import align, load_crops

PHOTO_SETS = ("vggface2_n000050", "celebahq_103", "celebahq_1972", "metacloak_s1")


@dataclass(frozen=True, kw_only=True)
class Separation:
    """Mean cosines of same-person and different-person pairs; `auc`: probability that the same-person pair has more."""

    crops: int
    people: int
    same_pairs: int
    different_pairs: int
    same: float
    different: float
    auc: float


def separation(embeddings: npt.NDArray[np.float32], people: list[str]) -> Separation:
    """Return the separation over all pairs of unit embeddings, `n d`. Raises ValueError without pairs of both kinds."""
    first, second = np.triu_indices(len(people), 1)
    scores = (embeddings @ embeddings.T)[first, second]
    names = np.asarray(people)
    same = names[first] == names[second]
    yes, no = int(same.sum()), int((~same).sum())
    if not yes or not no:
        raise ValueError("needs same-person pairs and different-person pairs")
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    auc = (ranks[same].sum() - yes * (yes + 1) / 2) / (yes * no)
    return Separation(
        crops=len(people),
        people=len(set(people)),
        same_pairs=yes,
        different_pairs=no,
        same=float(scores[same].mean()),
        different=float(scores[~same].mean()),
        auc=float(auc),
    )


def embed(model: Path, crops: Pixels) -> npt.NDArray[np.float32]:
    """Return the unit embeddings, `n d`, of RGB crops n x 112 x 112 x 3, computed by onnxruntime."""
    session = onnx_session(model)
    name = session.get_inputs()[0].name
    x = (crops.astype(np.float32).transpose(0, 3, 1, 2) - 127.5) / 127.5
    rows = [np.asarray(session.run(None, {name: x[i : i + 32]})[0]) for i in range(0, len(x), 32)]
    result = np.concatenate(rows)
    return np.asarray(result / np.linalg.norm(result, axis=1, keepdims=True), np.float32)


def held_out_crops(assets: Path) -> tuple[Pixels, list[str]]:
    """Return the aligned crops of the training collection's held-out people, and their names."""
    crops, matrix = load_crops(assets)
    held_out = [c for c in crops if c.held_out]
    return np.stack([align(c.pixels(), matrix) for c in held_out]), [c.person for c in held_out]


def photo_crops(assets: Path) -> tuple[Pixels, list[str], int]:
    """Return the largest face of each photo, its person, and the number of photos without a face.

    Photos are padded to twice their size, so that close-up faces are found. Raises OSError for an unreadable photo.
    """
    from insightface.model_zoo import get_model
    from insightface.utils import face_align

    detector = get_model(str(assets / "detectors" / "det_500m.onnx"), providers=["CPUExecutionProvider"])
    detector.prepare(-1, input_size=(640, 640), det_thresh=0.5)
    crops, people, missed = [], [], 0
    for person in PHOTO_SETS:
        for path in sorted(p for p in (assets / "photos" / person).iterdir() if p.suffix in {".jpg", ".png"}):
            bgr = cv2.imread(str(path))
            if bgr is None:
                raise OSError(f"{path} is not a readable photo")
            height, width = bgr.shape[:2]
            sides = (height // 2, height - height // 2, width // 2, width - width // 2)
            bgr = cv2.copyMakeBorder(bgr, *sides, cv2.BORDER_CONSTANT)
            boxes, landmarks = detector.detect(bgr)
            if not len(boxes):
                missed += 1
                continue
            largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
            crop = face_align.norm_crop(bgr, landmarks[largest])
            crops.append(np.asarray(crop[:, :, ::-1], np.uint8))
            people.append(person)
    return np.stack(crops), people, missed


def main() -> None:
    """Print one JSON object for each encoder and collection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoders", type=Path, nargs="+", help="ONNX files in the InsightFace convention")
    parser.add_argument("--assets", type=Path, required=True, help="folder with faces/, photos/ and detectors/")
    options = parser.parse_args()
    crops, people = held_out_crops(options.assets)
    faces, owners, missed = photo_crops(options.assets)
    for encoder in options.encoders:
        for name, images, labels, lost in (("lfw_held_out", crops, people, 0), ("photos", faces, owners, missed)):
            found = asdict(separation(embed(encoder, images), labels))
            print(json.dumps({"encoder": str(encoder), "on": name, **found, "missed": lost}))


if __name__ == "__main__":
    main()
