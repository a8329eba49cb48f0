"""Photos as bytes for the tests, each of known pixels; two formats are written by hand from their specification."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def smooth(width: int = 96, height: int = 64) -> np.ndarray:
    """A smooth colour ramp: lossy codecs keep it within a few levels."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    planes = np.broadcast_arrays(x[None, :], y[:, None], np.float64(128))
    return np.stack(planes, axis=2).round().astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(smooth())


def flat_photo(level: int) -> bytes:
    """A PNG of one grey level (modulo 200) with a white square."""
    pixels = np.full((64, 72, 3), level % 200, np.uint8)
    pixels[8:24, 8:24] = 255
    return saved(Image.fromarray(pixels), "PNG")


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand from the specification: `rows` with the filter byte before each row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def lightness_profile() -> bytes:
    """A CMYK profile by hand (ICC.1, lut8Type): L* = 100 (1 - K)(1 - (C + M + Y) / 3), a* = b* = 0."""
    grid = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    clut = bytes(v for c, m, y, k in grid for v in (round(255 * (1 - k) * (1 - (c + m + y) / 3)), 128, 128))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + clut + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", [(b"A2B0", lut), (b"A2B1", lut)])


def grey_profile(gamma: float) -> bytes:
    """A grey profile by hand (ICC.1, curveType of one u8Fixed8): luminance is level ** gamma."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))
    return _profile(b"mntr", b"GRAY", b"XYZ ", [(b"kTRC", curve)])


def _profile(device: bytes, space: bytes, connection: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    tags = [*tags, (b"wtpt", b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061))]
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags:
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02400000, device, space, connection)
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(smooth() // (i + 1)) for i in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan stands there so many more times: 26 bytes each, and a pass over all pixels."""
    data = saved(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def tiff(tags: list[tuple[int, int, int, int]], body: bytes) -> bytes:
    """A TIFF written by hand: (tag, type, count, value or offset) each, and what stands at offset 8."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    return head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def one_tile(side: int, tile: int) -> bytes:
    """A grey TIFF of one deflated tile, as large as anybody likes: a thousandth of its pixels as a file."""
    body = zlib.compress(bytes(tile * tile), 1)
    sizes = [(256, 4, 1, side), (257, 4, 1, side), (322, 4, 1, tile), (323, 4, 1, tile)]
    kind = [(258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff([*sizes, *kind, (324, 4, 1, 8), (325, 4, 1, len(body))], body)


def padded(profile: bytes, size: int, *, declared: bool) -> bytes:
    """A colour profile with bytes after its tags, which its header counts as its own if `declared`."""
    whole = profile + np.random.default_rng(0).bytes(size - len(profile))
    return (struct.pack(">I", size) if declared else profile[:4]) + whole[4:]


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]
