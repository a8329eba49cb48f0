"""Write tests/golden/tiny.json: what the tiny profile does to scikit-image's astronaut with a short schedule.

    python tests/golden/make_tiny.py

Bytes differ between processors in the last bit, which a sign step can turn into a grey level, so the golden values
are statistics with tolerances, not a checksum.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data

from dladiff.core.exchange import PhotoIn
from dladiff.service import IdentityOut, Protector

GOLDEN = Path(__file__).with_name("tiny.json")
SETTINGS: dict[str, Any] = {
    "profile": "tiny",
    "overrides": {
        "visibility": 0,  # Algorithms 1 and 2
        "encoders": ["embedded:residual"],
        "finetuning": {"iter_ft": 4, "iter_opt": 3},
        "zero_shot": {"max_steps": 30},
    },
}


def photo() -> np.ndarray:
    """The astronaut's head and shoulders, 256 px."""
    return np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])


def run() -> IdentityOut:
    return Protector(SETTINGS, seed=0, threads=1).protect_identity("astronaut", [PhotoIn(key="a", pixels=photo())], [])


def summary(out: IdentityOut) -> dict[str, Any]:
    """The statistics that the golden file keeps."""
    (done,) = out.photos
    difference = done.pixels.astype(int) - photo()
    return {
        "status": done.status,
        "linf": done.linf,
        "psnr": done.psnr,
        "psnr_face": done.psnr_face,
        "mean_absolute": float(np.abs(difference).mean()),
        "similarity": {s["encoder"]: s["after"] for s in done.similarity},
        "thumbnail": np.abs(difference).mean(2).reshape(8, 32, 8, 32).mean((1, 3)).round(4).tolist(),
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(summary(run()), indent=1) + "\n")
