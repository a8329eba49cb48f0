"""`python -m pipeline.demo DIR`: write photos of seven people from installed packages, one folder each.

Six people are in insightface's `t1` image; the seventh is Eileen Collins in scikit-image's `astronaut` (NASA,
public domain). Each is cropped around the face; neighbours may be visible at the edge.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.faces.detect import CenterFaceDetector, Face

MARGIN = 1.2
"""Space on each side of the face box, in units of its width and height, clipped to the photo."""


def crop_around(pixels: Pixels, face: Face) -> Pixels:
    """Return a photo (h x w x 3) cropped to a face's box with MARGIN on each side."""
    x0, y0, x1, y1 = face.box
    across, down = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    left, top = max(0, int(x0 - across)), max(0, int(y0 - down))
    return pixels[top : int(y1 + down), left : int(x1 + across)]


def demo_photos() -> dict[str, Pixels]:
    """Return person_1 to person_6, numbered from left to right, and astronaut."""
    import skimage.data
    from insightface.data import get_image

    detector = CenterFaceDetector()
    group = np.ascontiguousarray(get_image("t1", to_rgb=True))
    portrait = skimage.data.astronaut()
    people = sorted(detector.detect(group)[:6], key=lambda face: face.box[0])
    photos = {f"person_{i}": crop_around(group, face) for i, face in enumerate(people, start=1)}
    photos["astronaut"] = crop_around(portrait, detector.detect(portrait)[0])
    return photos


def write(photos: dict[str, Pixels], folder: Path) -> None:
    """Write `<folder>/<identity>/portrait.png`; existing equal files are kept, so they are no new work."""
    for identity, pixels in photos.items():
        path = folder / identity / "portrait.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and np.array_equal(np.asarray(Image.open(path)), pixels):
            continue
        Image.fromarray(pixels).save(path)


def main(arguments: list[str]) -> int:
    """Write the photos and print their folder; return the exit code, 2 for bad usage."""
    if len(arguments) != 1:
        print("usage: python -m pipeline.demo DIR", file=sys.stderr)
        return 2
    photos = demo_photos()
    write(photos, Path(arguments[0]))
    print(f"{len(photos)} identities, one photo each, in {arguments[0]}: {', '.join(photos)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
