"""Photo bytes to RGB pixels and back; hostile files are refused with one line."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from dladiff.core.arrays import Pixels
from dladiff.core.colour import grey_to_srgb, kind_of, profile_of, to_srgb
from dladiff.errors import PhotoError
from pipeline.sources.structure import (
    BITS_PER_SAMPLE,
    MAX_TEXT,
    PNG_MAGIC,
    jpeg_scans,
    odd_tiff,
    tile_pixels,
    webp_size,
    without_texts,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
JPEG_MAGIC = b"\xff\xd8\xff"
MAGIC = (JPEG_MAGIC, b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
ORIENTATION = 0x0112  # EXIF tag; values 1 to 8
MAX_SCANS = 100  # of a JPEG: encoders write about 10, and each is a pass over all pixels
TILE_EXCESS = 4  # most pixels of a TIFF tile, in units of the image's: libtiff holds whole tiles in memory
SMALL_TILE = 1024 * 1024  # pixels of a tile that any image may have
TEXT_FAULT = "MAX_TEXT_"  # part of Pillow's error for a PNG with a large text or profile
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
    with _faults():
        _check_bytes(data, max_scans)
        if size := webp_size(data):
            _check_size(*size, max_pixels, min_side)
        try:
            return _decoded(data, max_pixels, min_side)
        except ValueError as exc:
            if not data.startswith(PNG_MAGIC) or TEXT_FAULT not in str(exc):
                raise
        bare, lost = without_texts(data)  # Pillow refuses a PNG with a large text, even if its pixels are intact
        done = _decoded(bare, max_pixels, min_side)
        note = f"its colour profile has more than {MAX_TEXT} bytes and was left out" if lost else ""
        return replace(done, note="; ".join(text for text in (done.note, note) if text))


def dimensions(
    data: bytes, *, max_pixels: int = 50_000_000, min_side: int = 64, max_scans: int = MAX_SCANS
) -> tuple[int, int]:
    """Return width and height, px (EXIF orientation is not applied), without decoding. Raises PhotoError."""
    with _faults():
        _check_bytes(data, max_scans)
        if size := webp_size(data):
            _check_size(*size, max_pixels, min_side)
            return size
        bare = without_texts(data)[0] if data.startswith(PNG_MAGIC) else data
        with _open(bare, max_pixels) as image:
            _check(image, max_pixels, min_side)
            width, height = image.size
            return width, height


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Raise every exception of Pillow as PhotoError, and ignore its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF and large images; both are handled here
        try:
            yield
        except PhotoError:
            raise
        except Exception as exc:  # a hostile file can make Pillow raise any exception
            raise PhotoError(_reason(exc)) from exc


def _check_bytes(data: bytes, max_scans: int) -> None:
    if not data:
        raise PhotoError("the file is empty")
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        raise PhotoError("HEIC is not supported; convert it to JPEG or PNG")
    if data.startswith(JPEG_MAGIC) and jpeg_scans(data, max_scans) > max_scans:
        raise PhotoError(f"a JPEG of more than max_scans = {max_scans} scans; save it again as JPEG or PNG")


def _decoded(data: bytes, max_pixels: int, min_side: int) -> Decoded:
    with _open(data, max_pixels) as image:
        _check(image, max_pixels, min_side)
        image.load()
        return _to_rgb(image, _deep(image, data))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if what := odd_tiff(data):
            raise PhotoError(f"a TIFF with {what} is not supported; save it as an 8-bit or 16-bit PNG") from None
        if data.startswith(MAGIC):
            raise PhotoError("the file is truncated or damaged; copy it again from its source") from None
        raise PhotoError("not an image in a known format; convert it to JPEG or PNG") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own limit
        limit = f"{most // 1_000_000} megapixels" if most < max_pixels else f"max_pixels = {max_pixels}"
        raise PhotoError(f"too large: more than {limit}; make it smaller") from None


def _check_size(width: int, height: int, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise PhotoError(f"too large: {width} x {height} px is more than max_pixels = {max_pixels}; make it smaller")
    if min(width, height) < min_side:
        raise PhotoError(f"too small: {width} x {height} px, each side needs at least {min_side} px")


def _check(image: Image.Image, max_pixels: int, min_side: int) -> None:
    width, height = image.size
    _check_size(width, height, max_pixels, min_side)
    # In a phone's MPO the first picture is the photo; the others are previews or depth.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise PhotoError("animated or with several pages; save one frame as JPEG or PNG")
    tile = tile_pixels(image.tag_v2) if isinstance(image, TiffImagePlugin.TiffImageFile) else 0
    if tile > max(TILE_EXCESS * width * height, SMALL_TILE):
        raise PhotoError(f"a TIFF with a tile of {tile} pixels for {width} x {height} px; save it again as PNG")


def _deep(image: Image.Image, data: bytes) -> bool:
    """Return whether a colour file has more than 8 bits a channel; Pillow keeps the upper eight."""
    if image.format == "PNG":
        return len(data) > 24 and data[24] == 16 and not image.mode.startswith("I")
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, ())
    return image.mode in ("RGB", "RGBA") and max(bits if isinstance(bits, tuple) else (bits,), default=0) > 8


def _to_rgb(image: Image.Image, deep: bool) -> Decoded:
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
    turn = _orientation(image)
    return Decoded(
        pixels=_upright(pixels, turn),
        alpha=None if alpha is None else _upright(alpha, turn),
        icc=icc if kind == "RGB" else None,
        note="; ".join(text for text in (first, note, lost, "16-bit colour cut to 8 bits" if deep else "") if text),
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


def _reason(exc: Exception) -> str:
    text = str(exc).lower()
    if isinstance(exc, MemoryError):
        return "not enough memory to decode it; lower max_pixels or make it smaller"
    if isinstance(exc, EOFError) or "truncated" in text:
        return "the file is truncated; copy it again from its source"
    return f"the file is damaged ({type(exc).__name__}); copy it again from its source"
