"""The metrics of one attack on one person, image by image; means and intervals are taken over people afterwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dladiff.core import quality
from dladiff.core.pixels import Pixels
from dladiff.evaluation.judge import Embeddings, Judge, cosines
from dladiff.faces.image_network import ImageNetwork

Row = dict[str, Any]


class FeatureNetwork(Protocol):
    """Gives the features of FID."""

    name: str

    def __call__(self, picture: Pixels) -> NDArray[np.float64]:
        """Return `d` features of one picture."""


class SafetyChecker(Protocol):
    """Says of each picture whether it is not safe for work."""

    def __call__(self, pictures: Sequence[Pixels]) -> list[bool]:
        """Return one flag a picture."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What scores pictures. A network that is not there leaves its metric empty, never guessed."""

    judge: Judge
    features: FeatureNetwork
    fiqa: ImageNetwork | None = None
    lpips: ImageNetwork | None = None
    safety: SafetyChecker | None = None


def generated_rows(
    pictures: Sequence[Pixels], reference: Embeddings, originals: Embeddings, networks: Networks
) -> list[Row]:
    """Score generated pictures one by one.

    `face` counts for FDR; `ism` is the cosine of the largest face to the clean reference set, `gen` (ISM_gen) to the
    originals of the photos the thief used, encoder by encoder, None without a face; `fiqa` and `nsfw` are None without
    their networks.
    """
    flags = networks.safety(pictures) if networks.safety else [None] * len(pictures)
    rows = []
    for picture, flag in zip(pictures, flags, strict=True):
        reading = networks.judge.read(picture)
        rows.append(
            {
                "face": reading is not None,
                "ism": cosines(reading, reference),
                "gen": cosines(reading, originals),
                "fiqa": None if networks.fiqa is None else float(networks.fiqa(picture)[0]),
                "nsfw": flag,
            }
        )
    return rows


def protected_row(original: Pixels, shown: Pixels, protected: Pixels | None, networks: Networks) -> Row:
    """ISM_pro of one photo as the thief has it (`shown`): cosine to its original for each encoder, None without a face.

    `face` and `original_face` say where one was found; `quality` is there where the stored photo is given.
    """
    first = networks.judge.read(original)
    same = np.array_equal(original, shown)
    then = first if same or first is None else networks.judge.read(shown)
    row = {
        "original_face": first is not None,
        "face": then is not None,
        "pro": {} if first is None else cosines(then, first.embeddings),
    }
    if protected is None:
        return row
    boxes = [face.box for face in first.faces] if first else []
    return row | {"quality": quality_row(original, protected, boxes, networks.lpips)}


def quality_row(
    original: Pixels, protected: Pixels, boxes: Sequence[tuple[float, ...]], lpips: ImageNetwork | None
) -> Row:
    """Visible quality of one stored photo; PSNR of an unchanged photo is None.

    `psnr_face` is taken inside the boxes (x0, y0, x1, y1); None without one. `linf` in [0, 1] units.
    """
    mask = np.zeros(original.shape[:2], np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)] = True
    return {
        "psnr": _finite(quality.psnr(original, protected)),
        "psnr_face": _finite(quality.psnr(original, protected, mask)) if mask.any() else None,
        "ssim": quality.ssim(original, protected),
        "linf": quality.linf(original, protected),
        "lpips": None if lpips is None else lpips.measure(original, protected),
    }


def features_of(pictures: Sequence[Pixels], network: FeatureNetwork) -> NDArray[np.float32]:
    """Return n x d features for FID."""
    return np.stack([network(picture) for picture in pictures]).astype(np.float32)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
