"""Files of protected photos: PNG or JPEG, and the pixels that readers decode from them.

A JPEG changes the pixels that are encoded. So both layers optimise through it, and every check and figure is of the
decoded file. Imports no torch: the actor encodes with it.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.core.formats import FORMATS

BLOCK = 8
"""Side of a JPEG's blocks, pixels; without chroma subsampling, blocks do not affect each other."""
SIZE_LIMIT = 1.3
"""Largest size of a JPEG relative to its original's file."""
MIN_QUALITY = 75
"""Lowest JPEG quality chosen for the size limit; below, blocks are visible."""
QUALITY_STEP = 5


@dataclass(frozen=True)
class Codec:
    """How one protected photo is encoded. The same pixels give the same bytes."""

    format: str
    """A name of `formats.FORMATS`."""
    quality: int = 0
    """JPEG quality."""
    grey: bool = False
    """One channel: the photo's three are equal."""

    @property
    def lossy(self) -> bool:
        """Return whether the decoded pixels differ from the encoded ones."""
        return FORMATS[self.format].lossy

    def encode(
        self, pixels: Pixels, icc: bytes | None = None, alpha: Pixels | None = None, opt_out: bool = False
    ) -> bytes:
        """Return the file of h x w x 3 RGB bytes, with h x w alpha if any (PNG only).

        The colour profile and, with `opt_out`, the opt-out are the only metadata: EXIF and GPS are dropped on purpose.
        Raises ValueError for other arrays.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"pixels must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
        grey = self.grey and icc is None  # a profile of RGB would not fit one channel
        colour = pixels[:, :, :1] if grey else pixels
        stacked = np.ascontiguousarray(colour if alpha is None else np.dstack([colour, alpha]))
        image = Image.fromarray(stacked[:, :, 0] if stacked.shape[2] == 1 else stacked)
        return FORMATS[self.format].save(image, self.quality, icc, opt_out)

    def stored(self, pixels: Pixels) -> Pixels:
        """Return the pixels that a reader decodes."""
        if not self.lossy:
            return pixels
        with Image.open(io.BytesIO(self.encode(pixels))) as image:
            return np.array(image.convert("RGB"))


PNG = Codec("png")
"""The default."""


def is_grey(pixels: Pixels) -> bool:
    """Return whether the three channels are equal everywhere."""
    return bool((pixels == pixels[:, :, :1]).all())


def fitting_quality(photo: Pixels, quality: int, file_bytes: int, eta: float, grey: bool) -> int:
    """Return the highest quality, at most `quality`, at which a perturbed photo keeps the size limit.

    The perturbation is not known yet: random signs of half its bound (`eta`, [0, 1] units) stand for it. At least
    MIN_QUALITY, if that is not above `quality`.
    """
    signs = np.random.default_rng(0).integers(0, 2, photo.shape[: 2 if grey else 3], dtype=np.int16) * 2 - 1
    noise = signs[:, :, None] if grey else signs
    noisy = np.clip(photo + np.int16(round(eta * 255 / 2)) * noise, 0, 255).astype(np.uint8)
    lowest = min(quality, MIN_QUALITY)
    for candidate in range(quality, lowest, -QUALITY_STEP):
        if len(Codec("jpeg", candidate, grey).encode(noisy)) <= SIZE_LIMIT * file_bytes:
            return candidate
    return lowest
