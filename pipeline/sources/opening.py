"""Open a photo's file after checks of its bytes, its header and its pages; no pixel is decoded."""

import io

from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError

from dladiff.errors import PhotoError
from pipeline.sources import heif
from pipeline.sources.kinds import LOOK, NETPBM, RAW_BRANDS, brands
from pipeline.sources.structure import (
    MASK,
    RAW,
    REDUCED,
    SUB_PAGES,
    jpeg_scans,
    odd_jpeg,
    odd_tiff,
    tiff_pages,
    tile_pixels,
    webp_size,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
JPEG_MAGIC = b"\xff\xd8\xff"
MAGIC = (JPEG_MAGIC, b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8")
UNSUPPORTED = {
    (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"): "JPEG 2000",
    (b"\0\0\0\x0cJXL ", b"\xff\x0a"): "JPEG XL",
    (b"8BPS",): "Photoshop (PSD)",
    (b"v/1\x01",): "OpenEXR",
    (b"#?RADIANCE",): "Radiance HDR",
    (b"II\xbc\x01",): "JPEG XR",
    (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb"): "camera raw",
}
"""Names of formats that are not decoded, by their first bytes."""
MAX_SCANS = 100  # of a JPEG: encoders write about 10, and each is a pass over all pixels
TILE_EXCESS = 4  # most pixels of a TIFF tile, in units of the image's: libtiff holds whole tiles in memory
SMALL_TILE = 1024 * 1024  # pixels of a tile that any image may have
SMALLER = "make it smaller or raise max_pixels"
CONVERT = "convert it to JPEG or PNG"


def check_bytes(data: bytes, max_scans: int) -> None:
    """Raise PhotoError for a file that is empty, of a format that is not decoded, or of too many scans."""
    if not data:
        raise PhotoError("the file is empty")
    for heads, name in UNSUPPORTED.items():
        if data.startswith(heads):
            raise PhotoError(f"{name} is not supported; {CONVERT}")
    if data[8:12] == b"CR\2\0" or brands(data[:LOOK]) & RAW_BRANDS:
        raise PhotoError(f"camera raw is not supported; {CONVERT}")
    if data.startswith(JPEG_MAGIC):
        if jpeg_scans(data, max_scans) > max_scans:
            raise PhotoError(f"a JPEG of more than max_scans = {max_scans} scans; save it again as JPEG or PNG")
        if what := odd_jpeg(data):
            raise PhotoError(f"a JPEG with {what} is not supported; save it as an 8-bit JPEG or PNG")
    if heif.kind_of(data) and heif.is_sequence(data):
        raise PhotoError("animated or with several pages; save one frame as JPEG or PNG")


def check_header(data: bytes, max_pixels: int, min_side: int) -> tuple[int, int] | None:
    """Check the size of a WebP, HEIC or AVIF before Pillow opens it; return that of a WebP."""
    if size := webp_size(data):
        _check_size(*size, max_pixels, min_side)
        return size
    if heif.kind_of(data) and (found := heif.header(data)):
        _check_size(*found.largest, max_pixels, 0)
    return None


def open_image(data: bytes) -> Image.Image:
    """Open a file with Pillow, by a list of formats. Raises PhotoError for another format, and Pillow's own errors."""
    kind = heif.kind_of(data)
    if kind == "HEIC":
        heif.register_heic()
    elif kind == "AVIF":
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the limit of address space counts each thread's stack
    try:
        return Image.open(io.BytesIO(data), formats=(*FORMATS, "HEIF") if kind == "HEIC" else FORMATS)
    except UnidentifiedImageError:
        if what := odd_tiff(data):
            raise PhotoError(f"a TIFF with {what} is not supported; save it as an 8-bit or 16-bit PNG") from None
        if data.startswith(MAGIC) or heif.kind_of(data):
            raise PhotoError("the file is truncated or damaged; copy it again from its source") from None
        if NETPBM.match(data):
            raise PhotoError(f"Netpbm is not supported; {CONVERT}") from None
        raise PhotoError("not an image in a known format; convert it to JPEG or PNG") from None


def _check_size(width: int, height: int, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise PhotoError(f"too large: {width} x {height} px is more than max_pixels = {max_pixels}; {SMALLER}")
    if min(width, height) < min_side:
        raise PhotoError(f"too small: {width} x {height} px, each side needs at least {min_side} px")


def check_image(image: Image.Image, data: bytes, max_pixels: int, min_side: int) -> None:
    """Raise PhotoError for an opened file that is too large or too small, animated, or of several pages."""
    if image.format == "TIFF":
        _seek_page(image, data)
    width, height = image.size
    _check_size(width, height, max_pixels, min_side)
    # In a phone's MPO the first picture is the photo, in a HEIC the primary one; others are previews, depth, gain maps.
    if image.format not in ("MPO", "HEIF", "TIFF") and getattr(image, "is_animated", False):
        raise PhotoError("animated or with several pages; save one frame as JPEG or PNG")
    tile = tile_pixels(image.tag_v2) if isinstance(image, TiffImagePlugin.TiffImageFile) else 0
    if tile > max(TILE_EXCESS * width * height, SMALL_TILE):
        raise PhotoError(f"a TIFF with a tile of {tile} pixels for {width} x {height} px; save it again as PNG")


def _seek_page(image: Image.Image, data: bytes) -> None:
    """Go to the page of a TIFF that is neither a reduced version of another one nor a mask."""
    kinds = tiff_pages(data)
    if any(kind & RAW for kind in kinds):
        raise PhotoError(f"camera raw (DNG) is not supported; {CONVERT}")
    full = [number for number, kind in enumerate(kinds) if not kind & (REDUCED | MASK)]
    if len(full) > 1 or (not kinds and getattr(image, "is_animated", False)):
        raise PhotoError("animated or with several pages; save one frame as JPEG or PNG")
    if kinds and not full and SUB_PAGES in image.tag_v2:  # type: ignore[attr-defined]
        raise PhotoError(
            f"a TIFF with only a preview outside of its sub-pages (camera raw) is not supported; {CONVERT}"
        )
    if full and full[0]:
        image.seek(full[0])
