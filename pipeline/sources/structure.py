"""Structure of an image file, read from its bytes before any pixel is decoded."""

import io
import re
import zlib
from typing import Any

from PIL import TiffImagePlugin

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 1_000_000  # bytes of one text or profile of a PNG; Pillow refuses files with more than 2**20
TEXTS = (b"tEXt", b"zTXt", b"iTXt")  # PNG chunks that hold text
SOS, EOI = 0xDA, 0xD9  # JPEG markers: start of scan, end of image
STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length: TEM, RST0 to RST7, SOI
MARKER = re.compile(rb"\xff[\x01-\xfe]")
AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # FF00 is a data byte, FFD0 to FFD7 restart a scan
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
BITS_PER_SAMPLE, COMPRESSION, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 258, 259, 277, 339  # TIFF tags
STRIPS, TILES = (273, 279), (324, 325)  # TIFF tags: where the parts of the pixels begin, and their bytes
NUMBERS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}  # SAMPLE_FORMAT; else unsigned


def jpeg_scans(data: bytes, most: int) -> int:
    """Return the number of scans of a JPEG's first picture (ITU T.81, annex B), at most `most` + 1."""
    count, at = 0, 2
    while found := MARKER.search(data, at):
        code, at = data[found.end() - 1], found.end()
        if code == EOI or count > most:
            break
        if code in STANDALONE:
            continue
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
        if code == SOS:
            count += 1
            end = AFTER_SCAN.search(data, at)
            at = end.start() if end else len(data)
    return count


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height, px, from a WebP's first chunk (RFC 9649), None for other files.

    Needed because Pillow allocates 8 bytes a pixel when it opens a WebP, before the size can be checked.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def without_texts(png: bytes) -> tuple[bytes, bool]:
    """Return a PNG without texts and without a profile above MAX_TEXT bytes, and whether a profile was removed."""
    kept, at, lost = [PNG_MAGIC], len(PNG_MAGIC), False
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        kind, body = png[at + 4 : at + 8], png[at + 8 : end - 4]
        large = kind == b"iCCP" and _large(body)
        lost |= large
        if not large and kind not in TEXTS:
            kept.append(png[at:end])
        at = end
    return b"".join(kept), lost


def tile_pixels(tags: Any) -> int:
    """Return width times height of a TIFF's tiles, 0 without tiles. Damaged tags can raise any exception.

    Strips need no such check: libtiff cuts them to the image's height.
    """
    return int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0))


def odd_tiff(data: bytes) -> str:
    """Return the pixel format of a TIFF that Pillow cannot open, "" for other or incomplete files."""
    file = io.BytesIO(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        starts, lengths = (tags[tag] for tag in (STRIPS if STRIPS[0] in tags else TILES))
        end = max(start + length for start, length in zip(starts, lengths, strict=True))
        channels, bits = int(tags.get(SAMPLES_PER_PIXEL, 1)), int(max(tags.get(BITS_PER_SAMPLE, (1,))))
        numbers = NUMBERS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "unsigned")
        compression = int(tags.get(COMPRESSION, 1))
    except Exception:  # a hostile file can make Pillow raise any exception
        return ""
    if end > len(data):
        return ""
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        return f"compression {compression}"
    return f"{channels} x {bits} bits ({numbers}) a pixel"


def _large(profile: bytes) -> bool:
    """Return whether the profile in an iCCP chunk (name, NUL, method, zlib stream) exceeds MAX_TEXT bytes."""
    stream = profile[profile.find(b"\0") + 2 :]
    try:
        return len(zlib.decompressobj().decompress(stream, MAX_TEXT + 1)) > MAX_TEXT
    except zlib.error:
        return False
