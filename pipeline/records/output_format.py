"""The format of protected photos: one record, from which names, content types, encoding and checks derive."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.errors import PhotoError

DIGITS = 12  # of the file's SHA-256 that its name holds: photos of one name do not meet


@dataclass(frozen=True, kw_only=True)
class OutputFormat:
    """A format of image files."""

    name: str
    """As Pillow calls it."""
    suffix: str
    content_type: str
    lossless: bool
    """Whether the decoded pixels are those that were encoded; `encode_checked` holds it to that."""
    encode: Callable[..., bytes]
    """(pixels, ICC profile or None, alpha or None) to the file's bytes."""

    def file_name(self, stem: str, sha256: str) -> str:
        """Return the name of a protected photo whose bytes have this digest."""
        return f"{stem}.{sha256[:DIGITS]}{self.suffix}"

    def names(self, key: str) -> bool:
        """Return whether a key ends as the name of a protected photo."""
        return re.search(rf"\.[0-9a-f]{{{DIGITS}}}{re.escape(self.suffix)}$", key) is not None


def encode_png(pixels: Pixels, icc: bytes | None = None, alpha: Pixels | None = None) -> bytes:
    """Encode uint8 (H, W, 3) RGB, with uint8 (H, W) alpha if any: the same input gives the same bytes.

    The colour profile is the only metadata: EXIF and GPS of the source are dropped on purpose.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
    stacked = pixels if alpha is None else np.dstack([pixels, alpha])
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stacked)).save(out, "PNG", compress_level=6, icc_profile=icc)
    return out.getvalue()


PNG = OutputFormat(name="PNG", suffix=".png", content_type="image/png", lossless=True, encode=encode_png)
OUTPUT = PNG
"""The format of this version's protected photos."""


def encode_checked(pixels: Pixels, icc: bytes | None = None, alpha: Pixels | None = None) -> bytes:
    """Encode a protected photo and decode it again. Raises PhotoError: the pixels are not those that went in."""
    data = OUTPUT.encode(pixels, icc, alpha)
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image)[:, :, :3]
    if OUTPUT.lossless and not np.array_equal(stored, pixels):
        raise PhotoError("the encoded photo differs from the protected pixels")
    return data
