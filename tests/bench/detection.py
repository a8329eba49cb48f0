"""Seconds of face detection by size of photo, on one thread: `python -m tests.bench.detection`.

The photos are textures with six copies of a 100 px face (scikit-image's astronaut). CPU seconds for a whole photo and
for each megapixel, for one check of the stop rule near one face, and the process's peak memory beside the photo.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from dladiff.core.arrays import Pixels
from dladiff.faces.detect import CenterFaceDetector, Detector
from dladiff.service import named_detector
from tests.acceptance.small_faces import Source, background, paste

FACES = 6
FACE = 100  # px


def photo(megapixels: float) -> Pixels:
    """Return a texture with faces along its diagonal."""
    import skimage.data

    portrait = np.asarray(skimage.data.astronaut())
    (face,) = CenterFaceDetector().detect(portrait)
    source = Source(portrait, np.array(face.box), face.landmarks)
    width = round((megapixels * 1e6 * 3 / 2) ** 0.5)
    picture = background("grass", round(width * 2 / 3), width, 0)
    for i in range(FACES):
        across = (i + 1) / (FACES + 1)
        paste(picture, source, FACE, 0, (picture.shape[1] * across, picture.shape[0] * across))
    return picture


def row(detector: Detector, megapixels: float) -> str:
    """Return a line of the table."""
    picture = photo(megapixels)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    held = _memory("VmRSS")
    clock = time.process_time()
    faces = detector.detect(picture)
    seconds = time.process_time() - clock
    more = _memory("VmHWM") - held
    clock = time.process_time()
    detector.passes_near(picture, faces[:1])
    near = time.process_time() - clock
    cells = [
        f"{megapixels:g}",
        f"{len(faces)} of {FACES}",
        f"{seconds:.2f}",
        f"{seconds / megapixels:.2f}",
        f"{near:.2f}",
    ]
    return f"| {detector.name} | {' | '.join(cells)} | {more:.0f} |"


def _memory(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", nargs="+", default=["centerface"], help="centerface, an SCRFD file or a pack")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4, 12, 24, 50])
    options = parser.parse_args()
    print("| detector | megapixels | found | seconds | a megapixel | near one face | more MB at the peak |")
    print("|---|---|---|---|---|---|---|")
    for name in options.detector:
        detector = named_detector(name, 20, 0.5)
        detector.detect(np.zeros((64, 64, 3), np.uint8))  # loads
        for megapixels in options.megapixels:
            print(row(detector, megapixels), flush=True)


if __name__ == "__main__":
    main()
