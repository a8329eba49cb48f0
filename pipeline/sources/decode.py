"""Photo bytes to RGB pixels and back; hostile files are refused with one line."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.core.colour import grey_to_srgb, kind_of, profile_of, to_srgb
from dladiff.errors import PhotoError
from pipeline.sources import colour_tags, heif
from pipeline.sources.opening import (
    CONVERT,
    JPEG_MAGIC,
    MAX_SCANS,
    SMALLER,
    check_bytes,
    check_header,
    check_image,
    open_image,
)
from pipeline.sources.structure import (
    BITS_PER_SAMPLE,
    MAX_TEXT,
    PNG_MAGIC,
    jpeg_lacks_end,
    jpeg_scans_are_whole,
    without_texts,
)
from pipeline.storage.keys import short

TAIL = b"\x55" * 4096  # bits that change every block of a JPEG that misses its own
END = b"\xff\xd9"  # JPEG marker EOI
ORIENTATION = 0x0112  # EXIF tag; values 1 to 8
TEXT_FAULT = "MAX_TEXT_"  # part of Pillow's error for a PNG with a large text or profile
LASTING = ("damaged", "truncated", "not supported", "not an image", "animated", "is empty", "too small", "is refused")
"""Parts of reasons that trying the same file again does not change."""
THROUGH = "grey converted to sRGB through its profile"


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One photo as input of the method.

    pixels: uint8 (H, W, 3) RGB, EXIF orientation applied. alpha: uint8 (H, W), or None. icc: the colour profile
    that belongs to the RGB pixels, or None for sRGB. note: what was converted, empty when nothing was.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    icc: bytes | None = None
    note: str = ""


def decode(data: bytes, *, max_pixels: int = 50_000_000, min_side: int = 64, max_scans: int = MAX_SCANS) -> Decoded:
    """Decode a photo to RGB; its width, height and structure are checked before any pixel is decoded.

    `max_pixels` counts width times height, `min_side` is in px, `max_scans` counts the scans of a JPEG. Raises
    PhotoError for an empty, truncated, animated, too large, too small or unknown file. Files that were not decoded
    before belong in `pipeline.sources.decoders`, which also limits time and memory.
    """
    with _faults(max_pixels):
        check_bytes(data, max_scans)
        check_header(data, max_pixels, min_side)
        if data.startswith(JPEG_MAGIC) and jpeg_lacks_end(data):
            return _without_end(data, max_pixels, min_side)
        try:
            return _decoded(data, max_pixels, min_side)
        except ValueError as exc:
            if not data.startswith(PNG_MAGIC) or TEXT_FAULT not in str(exc):
                raise
        bare, lost = without_texts(data)  # Pillow refuses a PNG with a large text, even if its pixels are intact
        done = _decoded(bare, max_pixels, min_side)
        return _noted(done, f"its colour profile has more than {MAX_TEXT} bytes and was left out" if lost else "")


def dimensions(
    data: bytes, *, max_pixels: int = 50_000_000, min_side: int = 64, max_scans: int = MAX_SCANS
) -> tuple[int, int]:
    """Return width and height, px (EXIF orientation is not applied), without decoding. Raises PhotoError."""
    with _faults(max_pixels):
        check_bytes(data, max_scans)
        if size := check_header(data, max_pixels, min_side):
            return size
        bare = without_texts(data)[0] if data.startswith(PNG_MAGIC) else data
        with open_image(bare) as image:
            check_image(image, data, max_pixels, min_side)
            width, height = image.size
            return width, height


def prepare(data: bytes) -> None:
    """Load what decodes a file, outside of the limits that its decoding has."""
    if heif.kind_of(data) == "HEIC":
        with contextlib.suppress(PhotoError):
            heif.register_heic()


def is_lasting(reason: str) -> bool:
    """Return whether a photo with this reason fails again until its file is replaced."""
    return any(part in reason for part in LASTING)


@contextlib.contextmanager
def _faults(max_pixels: int) -> Iterator[None]:
    """Raise every exception of Pillow as PhotoError, and ignore its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF and large images; both are handled here
        try:
            yield
        except PhotoError:
            raise
        except Exception as exc:  # a hostile file can make Pillow raise any exception
            raise PhotoError(_reason(exc, max_pixels)) from exc


def _decoded(data: bytes, max_pixels: int, min_side: int) -> Decoded:
    with open_image(data) as image:
        check_image(image, data, max_pixels, min_side)
        image.load()
        done = _to_rgb(image, _depth(image, data))
    tags = None
    if data.startswith(PNG_MAGIC):
        tags = colour_tags.of_png(data)
    elif heif.kind_of(data) and (found := heif.header(data)) and found.colour:
        tags = colour_tags.coded(*found.colour, "colr box")
    if tags is not None:
        done = _noted(done, tags.note) if tags.note else _tagged(done, tags)
    gain = not data.startswith(PNG_MAGIC) and colour_tags.has_gain_map(data)
    return _noted(done, "its HDR gain map was left out" if gain else "")


def _tagged(done: Decoded, tags: colour_tags.Tags) -> Decoded:
    pixels = colour_tags.converted(done.pixels, tags)
    return _noted(replace(done, pixels=pixels, icc=None), "colour converted to sRGB from the values in the file")


def _noted(done: Decoded, note: str) -> Decoded:
    return replace(done, note="; ".join(text for text in (done.note, note) if text))


def _without_end(data: bytes, max_pixels: int, min_side: int) -> Decoded:
    """Decode a JPEG without its end marker. Raises PhotoError unless the bytes that are there decide every pixel.

    Pixels that miss their bits take them from what follows: the picture is whole if two tails give the same pixels.
    """
    data = data.removesuffix(END[:1])
    if jpeg_scans_are_whole(data):
        done, other = (_decoded(data + tail + END, max_pixels, min_side) for tail in (b"", TAIL))
        if np.array_equal(done.pixels, other.pixels):
            return _noted(done, "its end marker is missing")
    raise PhotoError("the file is truncated; copy it again from its source")


def _depth(image: Image.Image, data: bytes) -> int:
    """Return the bits a channel of a colour file, of which Pillow keeps the upper eight; 8 for grey files."""
    if image.format == "PNG":
        return 16 if len(data) > 24 and data[24] == 16 and not image.mode.startswith("I") else 8
    if found := heif.header(data) if heif.kind_of(data) else None:
        return found.bits
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, ())
    return max(bits if isinstance(bits, tuple) else (bits,), default=8) if image.mode in ("RGB", "RGBA") else 8


def _to_rgb(image: Image.Image, depth: int) -> Decoded:
    kind = kind_of(image.mode)
    icc, lost = profile_of(image)
    alpha: Pixels | None = None
    if kind == "L":
        pixels, alpha, note = _from_grey(image, icc)
    elif kind == "CMYK":
        pixels = np.asarray(to_srgb(image, icc) if icc else image.convert("RGB"))
        note = "CMYK converted through its profile" if icc else "CMYK converted"
    else:
        (pixels, alpha), note = _channels(image), "LAB converted" if kind == "LAB" else ""
    first = "first picture of a multi-picture JPEG" if image.format == "MPO" else ""
    if image.format == "HEIF" and getattr(image, "is_animated", False):
        first = "primary picture of a HEIC with several"
    deep = f"{depth}-bit colour cut to 8 bits" if depth > 8 else ""
    turn = _orientation(image)
    return Decoded(
        pixels=_upright(pixels, turn),
        alpha=None if alpha is None else _upright(alpha, turn),
        icc=icc if kind == "RGB" else None,
        note="; ".join(text for text in (first, note, lost, deep) if text),
    )


def _channels(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Return RGB and alpha (or None) of 8-bit pixels."""
    if image.mode in ("I", "F"):
        raise PhotoError("32-bit pixels have no agreed range; convert it to an 8-bit or 16-bit image")
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return rgba[:, :, :3], rgba[:, :, 3]
    return np.asarray(image.convert("RGB")), None


def _from_grey(image: Image.Image, icc: bytes | None) -> tuple[Pixels, Pixels | None, str]:
    """Return RGB, alpha (or None) and a note for a grey image, converted through its profile if it has one."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint16)
        return grey_to_srgb(wide, icc), None, f"16-bit {THROUGH}" if icc else "16-bit grey scaled to 8 bits"
    pixels, alpha = _channels(image)
    return grey_to_srgb(pixels[:, :, 0], icc), alpha, THROUGH if icc else "grey"


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 when it is missing or unreadable."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to refuse intact pixels
        return 1
    return value if value in range(1, 9) else 1


def _upright(array: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation of an (H, W) or (H, W, C) array; sides swap for 5 to 8."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _reason(exc: Exception, max_pixels: int) -> str:
    text = str(exc).lower()
    if isinstance(exc, Image.DecompressionBombError):
        found = re.search(r"(\d+) pixels", text)
        size = f"{found[1]} pixels" if found else "it"
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own limit
        if most < max_pixels:
            return f"too large: {size} is more than the {most} pixels that the decoder reads; make it smaller"
        return f"too large: {size} is more than max_pixels = {max_pixels}; {SMALLER}"
    if isinstance(exc, MemoryError):
        return "not enough memory to decode it; lower max_pixels or make it smaller"
    if isinstance(exc, EOFError) or "truncated" in text:
        return "the file is truncated; copy it again from its source"
    if "unsupported" in text or "not supported" in text:
        return f"its pixel format is not supported ({short(str(exc), 60)}); {CONVERT}"
    return f"the file is damaged ({type(exc).__name__}); copy it again from its source"
