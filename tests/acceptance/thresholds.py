"""Make `dladiff/profiles/tiny/encoders/calibration.json`: verification thresholds of the embedded encoders.

The comparison is the evaluator's (one photo against the mean of up to 16 photos of a person), on LFW's people that no
bundled network was trained on. Faces are aligned by the collection's template, without a detector, which takes a
minute. `tests.acceptance.impostors` and `dladiff calibrate` measure the same with the evaluator's detector.

    python -m tests.acceptance.thresholds --assets DIR [--out FILE] [ENCODER.onnx ...]
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dladiff.diffusion.bundle import file_sha256
from dladiff.evaluation.verification import SHIPPED, Calibration, Calibrations, calibrated
from dladiff.training.measure import embed, held_out_crops

SOURCE = "LFW, people held out of training, 128 px crops aligned by the collection's template"


def measured(assets: Path, encoder: Path) -> Calibration:
    """Return the calibration of an ONNX encoder."""
    crops, people = held_out_crops(assets)
    embeddings = embed(encoder, crops).astype(np.float64)
    own = {name: embeddings[[i for i, other in enumerate(people) if other == name]] for name in sorted(set(people))}
    return calibrated(own, encoder=encoder.stem, sha256=file_sha256(encoder), without_face=0, source=SOURCE)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("encoders", type=Path, nargs="*", help="default: the embedded ones")
    options = parser.parse_args()
    encoders = options.encoders or sorted(SHIPPED.parent.glob("*.onnx"))
    found = Calibrations(encoders=tuple(measured(options.assets, encoder) for encoder in encoders))
    options.out.write_text(json.dumps(found.to_dict(), indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
