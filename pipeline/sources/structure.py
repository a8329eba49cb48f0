"""Structure of an image file, read from its bytes before any pixel is decoded."""

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any, Literal

from PIL import TiffImagePlugin

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 1_000_000  # bytes of one text or profile of a PNG; Pillow refuses files with more than 2**20
TEXTS = (b"tEXt", b"zTXt", b"iTXt")  # PNG chunks that hold text
SOS, EOI = 0xDA, 0xD9  # JPEG markers: start of scan, end of image
FRAMES = {
    **dict.fromkeys((0xC0, 0xC1, 0xC2, 0xC9, 0xCA), ""),
    **dict.fromkeys((0xC3, 0xCB), "lossless coding"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical coding"),
    0xF7: "the coding of JPEG-LS",
}
"""Markers of a JPEG's frame, and what no decoder here reads of it, "" for what it reads."""
STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length: TEM, RST0 to RST7, SOI
MARKER = re.compile(rb"\xff[\x01-\xfe]")
AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # FF00 is a data byte, FFD0 to FFD7 restart a scan
MAX_PAGES = 64  # pages of a TIFF that are read: a pyramid of reduced pictures has about 10
NEW_SUBFILE, OLD_SUBFILE = 254, 255  # TIFF tags
REDUCED, MASK, RAW = 1, 4, 1 << 32  # bits of `tiff_pages`: a small version of another page, a mask, a camera raw
SUB_PAGES = 330  # TIFF tag SubIFDs: pages that are in no chain
RAW_TAGS = frozenset({50706, 50752})  # DNGVersion, and what Canon writes in a CR2
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
BITS_PER_SAMPLE, COMPRESSION, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 258, 259, 277, 339  # TIFF tags
STRIPS, TILES = (273, 279), (324, 325)  # TIFF tags: where the parts of the pixels begin, and their bytes
NUMBERS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}  # SAMPLE_FORMAT; else unsigned


def jpeg_scans(data: bytes, most: int) -> int:
    """Return the number of scans of a JPEG's first picture, at most `most` + 1."""
    count = 0
    for code, _ in _jpeg_segments(data):
        count += code == SOS
        if count > most:
            break
    return count


def odd_jpeg(data: bytes) -> str:
    """Return what of a JPEG no decoder here reads ("12 bits a channel"), "" for nothing."""
    for code, body in _jpeg_segments(data):
        if code in FRAMES:
            bits = body[0] if body else 8
            return FRAMES[code] or (f"{bits} bits a channel" if bits != 8 else "")
        if code == SOS:
            break
    return ""


def jpeg_lacks_end(data: bytes) -> bool:
    """Return whether a JPEG's first picture has a scan and no end marker."""
    codes = {code for code, _ in _jpeg_segments(data)}
    return SOS in codes and EOI not in codes


def jpeg_scans_are_whole(data: bytes) -> bool:
    """Return whether the scans give every bit of every coefficient (ITU T.81, G.1.1.1), by their headers."""
    components: dict[int, list[int]] = {}
    for code, body in _jpeg_segments(data):
        if code in FRAMES and len(body) > 5:
            components = {body[at]: [8] * 64 for at in range(6, min(len(body) - 2, 6 + 3 * body[5]), 3)}
        elif code == SOS and len(body) > 3 and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[-3], body[-2], body[-1] & 15
            for at in range(1, 1 + 2 * body[0], 2):
                for i in range(first, min(last, 63) + 1):
                    components.setdefault(body[at], [8] * 64)[i] = bits
    return bool(components) and not any(any(bits) for bits in components.values())


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of the segments of a JPEG's first picture, EOI included (ITU T.81, annex B)."""
    at = 2
    while found := MARKER.search(data, at):
        code, at = data[found.end() - 1], found.end()
        if code in STANDALONE:
            continue
        if code == EOI:
            yield code, b""
            return
        length = max(2, int.from_bytes(data[at : at + 2], "big"))
        yield code, data[at + 2 : at + length]
        at += length
        if code == SOS:
            end = AFTER_SCAN.search(data, at)
            at = end.start() if end else len(data)


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


def tiff_pages(data: bytes) -> list[int]:
    """Return NewSubfileType of each page of a TIFF, at most MAX_PAGES; [] for a file that is none, or is damaged."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(at: int, length: int) -> int:
        return int.from_bytes(data[at : at + length], order)

    big = number(2, 2) == 43  # BigTIFF has eight bytes where TIFF has four or two
    count_bytes, entry, offset = (8, 20, 8) if big else (2, 12, 4)
    at = number(8 if big else 4, offset)
    found: list[int] = []
    while at and len(found) < MAX_PAGES:
        count = number(at, count_bytes)
        end = at + count_bytes + count * entry
        if not count or end + offset > len(data):
            return found
        kind = 0
        for tag_at in range(at + count_bytes, end, entry):
            tag, value = number(tag_at, 2), number(tag_at + (12 if big else 8), 4 if number(tag_at + 2, 2) == 4 else 2)
            kind |= RAW if tag in RAW_TAGS else value if tag == NEW_SUBFILE else value == 2 if tag == OLD_SUBFILE else 0
        found.append(kind)
        at = number(end, offset)
    return found


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
