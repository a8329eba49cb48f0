"""ICC colour profiles: check them and convert pixels to sRGB."""

import io
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

HEADER = 128  # bytes of a profile's header; its tags follow
SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK", "LAB": b"Lab "}
"""Colour space in bytes 16-19 of a profile, by the Pillow mode of the pixels that it describes."""
GREY = frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes of grey pixels."""
MAX_BYTES = {"RGB": 1_000_000, "L": 8_000_000, "CMYK": 8_000_000, "LAB": 8_000_000}
"""Largest accepted profile in bytes, by mode of SPACES. An RGB profile is stored in the output PNG, and Pillow opens no
PNG whose profile has more than 2**20 bytes. The others are used for one conversion; the largest in use have 3 MB."""


def kind_of(mode: str) -> str:
    """Return the key of SPACES for pixels of this Pillow mode."""
    return "L" if mode in GREY else mode if mode in SPACES else "RGB"


def profile_of(image: Image.Image) -> tuple[bytes | None, str]:
    """Return an image's ICC profile and "", or None and why its profile was dropped ("" where it has none)."""
    if "icc_profile" not in image.info:
        return None, ""
    icc = trimmed(image.info["icc_profile"])  # Pillow gives None where it cannot join the profile's chunks
    fault = profile_fault(icc, kind_of(image.mode))
    return (None, f"its colour profile {fault} and was left out") if fault else (icc, "")


def trimmed(icc: Any) -> Any:
    """Return a profile cut to the size that its header declares (ICC.1, 7.2.2); return anything else unchanged."""
    if not _whole(icc):
        return icc
    declared = int.from_bytes(icc[:4], "big")
    return icc[:declared] if HEADER < declared < len(icc) else icc


def profile_fault(icc: object, mode: str) -> str:
    """Return why an ICC profile cannot be used for pixels of a mode of SPACES ("is damaged"), or ""."""
    if not _whole(icc):
        return "is damaged"
    if len(icc) > MAX_BYTES[mode]:
        return f"has more than {MAX_BYTES[mode]} bytes"
    if icc[16:20] != SPACES[mode]:
        return "does not fit its pixels"
    try:
        to_srgb(Image.new(mode, (1, 1)), icc)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "is damaged"
    return ""


def to_srgb(image: Image.Image, icc: bytes, flags: ImageCms.Flags = ImageCms.Flags.NONE) -> Image.Image:
    """Return the image converted from its profile to sRGB, mode RGB; `icc` must pass `profile_fault`."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB", flags=flags)
    assert converted is not None  # Pillow returns None only for in-place conversion
    return converted


def grey_to_srgb(levels: NDArray[np.uint8] | NDArray[np.uint16], icc: bytes | None) -> NDArray[np.uint8]:
    """Return grey levels (H, W) as sRGB (H, W, 3), converted by a lookup table; without a profile they are sRGB."""
    highest = int(np.iinfo(levels.dtype).max)
    if icc is None:
        scale = highest // 255  # 257 for 16 bits; the result is rounded to the nearest level
        return np.repeat(((levels + np.uint32(scale // 2)) // scale).astype(np.uint8)[:, :, None], 3, axis=2)
    ramp = np.arange(highest + 1).astype(levels.dtype)
    # NOOPTIMIZE: Little CMS otherwise resamples curves and is up to ten levels off in the shadows of a linear one.
    table = np.asarray(to_srgb(Image.fromarray(ramp[None]), icc, ImageCms.Flags.NOOPTIMIZE))[0]
    out = np.empty((*levels.shape, 3), np.uint8)
    # One row at a time: NumPy widens an index array to eight bytes a pixel.
    for row, target in zip(levels, out, strict=True):
        target[:] = table[row]
    return out


def _whole(icc: object) -> TypeGuard[bytes]:
    return isinstance(icc, bytes) and len(icc) > HEADER and icc[36:40] == b"acsp"
