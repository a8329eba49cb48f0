"""Files of protected photos: their names, and encoding with a check."""

import io
import re

import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.core.codec import PNG as PNG_CODEC
from dladiff.core.codec import Codec
from dladiff.core.formats import FORMATS, Format
from dladiff.errors import PhotoError

DIGITS = 12  # of the file's SHA-256 in its name: photos of one name do not collide


PNG = FORMATS["png"]
_SUFFIXES = "|".join(re.escape(kind.suffix) for kind in FORMATS.values())
_NAMES = re.compile(rf"\.[0-9a-f]{{{DIGITS}}}({_SUFFIXES})$")


def output_name(stem: str, sha256: str, kind: Format) -> str:
    """Return the name of a protected photo whose bytes have this digest."""
    return f"{stem}.{sha256[:DIGITS]}{kind.suffix}"


def is_output_name(key: str) -> bool:
    """Return whether a key ends as the name of a protected photo."""
    return _NAMES.search(key) is not None


def is_lossy(key: str) -> bool:
    """Return whether a stored photo's format changes the pixels that were encoded."""
    return any(key.endswith(kind.suffix) for kind in FORMATS.values() if kind.lossy)


def encode_png(pixels: Pixels, icc: bytes | None = None, alpha: Pixels | None = None) -> bytes:
    """Return a PNG of h x w x 3 RGB bytes, with h x w alpha if any."""
    return PNG_CODEC.encode(pixels, icc, alpha)


def encode_checked(
    pixels: Pixels,
    icc: bytes | None = None,
    alpha: Pixels | None = None,
    codec: Codec = PNG_CODEC,
    opt_out: bool = False,
) -> bytes:
    """Encode a protected photo and decode it again. Raises PhotoError: the pixels are not those that were measured."""
    data = codec.encode(pixels, icc, alpha, opt_out)
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image.convert("RGB"))
    if not np.array_equal(stored, codec.stored(pixels)):
        raise PhotoError("the encoded photo differs from the protected pixels")
    return data
