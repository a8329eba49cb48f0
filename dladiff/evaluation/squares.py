"""What a thief cuts from the photos it has: the face it finds itself, or the middle square."""

import numpy as np
from PIL import Image

from dladiff.core.pixels import Pixels, to_float, to_uint8
from dladiff.core.tiles import cut, face_square
from dladiff.faces.detect import Detector


def thief_square(photo: Pixels, region: str, resolution: int, detector: Detector) -> Pixels | None:
    """Cut r x r: around the largest face found in this very photo (region `face`), or its middle square (`photo`).

    None where a face is asked for and none is found: the thief drops the photo.
    """
    if region == "face":
        faces = detector.detect(photo)
        return to_uint8(cut(to_float(photo), face_square(faces[0].landmarks), resolution)) if faces else None
    height, width = photo.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    middle = Image.fromarray(photo).crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((resolution, resolution), Image.Resampling.LANCZOS))
