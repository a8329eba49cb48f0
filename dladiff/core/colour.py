"""Colour profiles: which pixels one is for, and the way from these to sRGB."""

import io
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

HEADER = 128  # bytes of a profile's header, which its tags follow
SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK", "LAB": b"Lab "}
"""Colour space that a profile names (its bytes 16-19), by the mode of the pixels it is for."""
GREY = frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"})
"""Modes of grey pixels."""
MOST_BYTES = {"RGB": 1_000_000, "L": 8_000_000, "CMYK": 8_000_000, "LAB": 8_000_000}
"""Most bytes of a profile, by mode of SPACES. One of RGB pixels is stored with the photo as a PNG, and Pillow opens no
PNG whose profile has more than 2**20 bytes. The others serve one conversion; the largest in use have 3 MB."""


def kind_of(mode: str) -> str:
    """Return the mode of SPACES whose profiles serve pixels of a mode of Pillow."""
    return "L" if mode in GREY else mode if mode in SPACES else "RGB"


def profile_of(image: Image.Image) -> tuple[bytes | None, str]:
    """Return the profile of an image's pixels, or None and what is wrong with the one it has, if any."""
    if "icc_profile" not in image.info:
        return None, ""
    icc = trimmed(image.info["icc_profile"])  # None where Pillow cannot put its pieces together
    fault = profile_fault(icc, kind_of(image.mode))
    return (None, f"its colour profile {fault} and was left out") if fault else (icc, "")


def trimmed(icc: Any) -> Any:
    """Return a profile cut to the size that its header declares (ICC.1, 7.2.2); anything else as it is."""
    if not _whole(icc):
        return icc
    declared = int.from_bytes(icc[:4], "big")
    return icc[:declared] if HEADER < declared < len(icc) else icc


def profile_fault(icc: object, mode: str) -> str:
    """Return what is wrong with an ICC profile for pixels of a mode of SPACES ("is damaged"), or nothing."""
    if not _whole(icc):
        return "is damaged"
    if len(icc) > MOST_BYTES[mode]:
        return f"has more than {MOST_BYTES[mode]} bytes"
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


def grey_to_srgb(levels: NDArray[np.uint8] | NDArray[np.uint16], icc: bytes | None) -> NDArray[np.uint8]:
    """Take grey (H, W) through its profile, every level once, to sRGB (H, W, 3); without one, its levels are sRGB's."""
    most = int(np.iinfo(levels.dtype).max)
    if icc is None:
        scale = most // 255  # of 16 bits 257, and rounded to the nearest
        return np.repeat(((levels + np.uint32(scale // 2)) // scale).astype(np.uint8)[:, :, None], 3, axis=2)
    ramp = np.arange(most + 1).astype(levels.dtype)
    # Unoptimised: Little CMS otherwise samples curves, and is up to ten levels off in the shadows of a linear one.
    table = np.asarray(to_srgb(Image.fromarray(ramp[None]), icc, ImageCms.Flags.NOOPTIMIZE))[0]
    out = np.empty((*levels.shape, 3), np.uint8)
    for row, done in zip(levels, out, strict=True):  # NumPy widens an index to eight bytes a pixel: one row at a time
        done[:] = table[row]
    return out


def _whole(icc: object) -> TypeGuard[bytes]:
    return isinstance(icc, bytes) and len(icc) > HEADER and icc[36:40] == b"acsp"
