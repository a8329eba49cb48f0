"""HEIC and AVIF files: what their boxes say before a pixel is decoded (ISO/IEC 23008-12), and the decoder of HEIC."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from dladiff.errors import PhotoError
from pipeline.sources.kinds import AVIF_BRANDS, HEIC_BRANDS, LOOK, brands

SEQUENCES = frozenset({b"hevc", b"hevx", b"hevm", b"hevs", b"msf1", b"avis"})  # major brands of animations
MAX_BOXES = 100_000  # boxes and associations read of one file: a grid of 48 megapixels has about 200
FULL = 4  # bytes of version and flags in a full box


@dataclass(frozen=True)
class Header:
    """Of the primary picture, except `largest`."""

    largest: tuple[int, int]
    """Width and height, px, of the largest picture of the file: a grid, a tile, a thumbnail or a gain map."""
    colour: tuple[int, int] | None
    """Colour primaries and transfer characteristics (ITU-T H.273), None where a profile or nothing gives the colour."""
    bits: int
    """Bits a channel; 8 where the file does not give it."""


def kind_of(data: bytes) -> str:
    """Return "HEIC" or "AVIF", "" for other files."""
    found = brands(data[:LOOK])
    if not found & (HEIC_BRANDS | AVIF_BRANDS):
        return ""
    return "AVIF" if found & AVIF_BRANDS else "HEIC"


def is_sequence(data: bytes) -> bool:
    """Return whether the major brand is one of an animation."""
    return data[8:12] in SEQUENCES


def header(data: bytes) -> Header | None:
    """Return what the boxes of a file say, None where they are incomplete or name no size."""
    meta = next((body for kind, body in _boxes(data) if kind == b"meta"), b"")[FULL:]
    boxes = dict(reversed([*_boxes(meta)]))
    within = dict(reversed([*_boxes(boxes.get(b"iprp", b""))]))
    properties = [*_boxes(within.get(b"ipco", b""))]
    sizes = [(_number(b, FULL, 4), _number(b, FULL + 4, 4)) for kind, b in properties if kind == b"ispe"]
    if not sizes:
        return None
    pitm = boxes.get(b"pitm", b"")
    primary = _number(pitm, FULL, 2 if pitm[:1] == b"\0" else 4)
    own = [properties[i - 1] for i in _associated(within.get(b"ipma", b""), primary) if 0 < i <= len(properties)]
    colour = next(
        ((_number(b, 4, 2), _number(b, 6, 2)) for kind, b in own if kind == b"colr" and b[:4] == b"nclx"), None
    )
    if any(kind == b"colr" and b[:4] in (b"prof", b"rICC") for kind, b in own):
        colour = None
    bits = next((max(b[FULL + 1 :], default=8) for kind, b in own if kind == b"pixi"), 8)
    return Header(max(sizes, key=lambda size: size[0] * size[1]), colour, bits)


@functools.cache
def register_heic() -> None:
    """Let Pillow open HEIC files. Raises PhotoError where pillow-heif is not installed.

    One thread: the limit of address space counts each thread's stack. Thumbnails and depth maps are not read.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise PhotoError("HEIC is not supported here: install pillow-heif, or convert it to JPEG or PNG") from error
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of each box; the last may be incomplete."""
    at = 0
    for _ in range(MAX_BOXES):
        if at + 8 > len(data):
            return
        size, start = _number(data, at, 4), 8
        if size == 1:
            size, start = _number(data, at + 8, 8), 16
        end = len(data) if size == 0 else at + size
        if end < at + start:
            return
        yield data[at + 4 : at + 8], data[at + start : end]
        at = end


def _associated(ipma: bytes, item: int) -> list[int]:
    """Return the numbers of an item's properties, from 1 on (box ipma)."""
    wide_id, wide_index = ipma[:1] != b"\0", bool(_number(ipma, 3, 1) & 1)
    at = FULL + 4
    for _ in range(min(_number(ipma, FULL, 4), MAX_BOXES)):
        found, at = _number(ipma, at, 4 if wide_id else 2), at + (4 if wide_id else 2)
        count, at = _number(ipma, at, 1), at + 1
        step = 2 if wide_index else 1
        if found == item:
            most = 0x7FFF if wide_index else 0x7F  # the upper bit says whether the property is essential
            return [_number(ipma, at + i * step, step) & most for i in range(count)]
        at += count * step
        if at >= len(ipma):
            break
    return []


def _number(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "big")
