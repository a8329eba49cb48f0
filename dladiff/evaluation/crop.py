"""The attacker's training crop of a photo: the square around the face that it detects, or the middle square."""

import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import to_float, to_uint8
from dladiff.core.tiles import cut, face_square
from dladiff.faces.detect import Detector


def attacker_crop(photo: Pixels, region: str, resolution: int, detector: Detector) -> Pixels | None:
    """Return a crop of `resolution` x `resolution` px.

    Region `face` is the square around the largest face that `detector` finds in this photo, or None without a face.
    Region `photo` is the middle square.
    """
    if region == "face":
        faces = detector.detect(photo)
        return to_uint8(cut(to_float(photo), face_square(faces[0].landmarks), resolution)) if faces else None
    height, width = photo.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    middle = Image.fromarray(photo).crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((resolution, resolution), Image.Resampling.LANCZOS))
