"""Colour profiles: which pixels one is for, and the way from these to sRGB."""

import io
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK", "LAB": b"Lab "}
"""Colour space that a profile names, by the mode of the pixels it is for."""


def describes_rgb(icc: object) -> bool:
    """Tell whether an ICC profile (bytes 16-19: colour space, 36-39: signature) is one of RGB pixels."""
    return _whole(icc) and icc[16:20] == SPACES["RGB"]


def profile_fault(icc: object, mode: str) -> str:
    """Return what is wrong with an ICC profile for pixels of a mode of SPACES ("is damaged"), or nothing."""
    if not _whole(icc):
        return "is damaged"
    if icc[16:20] != SPACES[mode]:
        return "does not fit its pixels"
    try:
        to_srgb(Image.new(mode, (1, 1)), icc)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "is damaged"
    return ""


def to_srgb(image: Image.Image, icc: bytes, flags: ImageCms.Flags = ImageCms.Flags.NONE) -> Image.Image:
    """Take pixels through their profile to sRGB, mode RGB; `profile_fault` finds nothing in the profile."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    done = ImageCms.profileToProfile(image, source, target, outputMode="RGB", flags=flags)
    assert done is not None  # only a conversion in place gives none
    return done


def grey_to_srgb(levels: NDArray[np.uint8] | NDArray[np.uint16], icc: bytes) -> NDArray[np.uint8]:
    """Take grey (H, W) through its profile to sRGB (H, W, 3), every level once."""
    ramp = np.arange(np.iinfo(levels.dtype).max + 1).astype(levels.dtype)
    # Unoptimised: Little CMS otherwise samples curves, and is up to ten levels off in the shadows of a linear one.
    table = np.asarray(to_srgb(Image.fromarray(ramp[None]), icc, ImageCms.Flags.NOOPTIMIZE))[0]
    out = np.empty((*levels.shape, 3), np.uint8)
    for row, done in zip(levels, out, strict=True):  # NumPy widens an index to eight bytes a pixel: one row at a time
        done[:] = table[row]
    return out


def _whole(icc: object) -> TypeGuard[bytes]:
    return isinstance(icc, bytes) and len(icc) > 128 and icc[36:40] == b"acsp"
