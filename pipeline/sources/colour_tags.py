"""Colour that a file gives outside of an ICC profile: converted to sRGB, or noted."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels

Primaries = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]
"""Chromaticities x, y of red, green, blue and white."""

D65 = (0.3127, 0.3290)
SRGB: Primaries = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)
PRIMARIES: dict[int, Primaries] = {
    1: SRGB,
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
"""By code of ITU-T H.273, table 2."""
UNSPECIFIED = 2  # of primaries and transfer: viewers take sRGB
SDR = frozenset({1, 2, 6, 13, 14, 15})  # transfer characteristics that viewers show with the curve of sRGB
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}  # transfer characteristics that are a power of the level
HDR = {16: "PQ", 18: "HLG"}
GAIN_MAPS = (b"hdrgm:", b"hdrgainmap", b"urn:iso:std:iso:ts:21496")
GAIN_ITEM, BOXES = b"tmap", 1 << 14  # type of an item of a HEIF file, and bytes of the boxes that name it
CLOSE = 0.002  # difference of chromaticities that rounding makes: PNG stores five digits, some writers three
SRGB_GAMMA = (0.45, 0.46)  # gAMA of a PNG whose writer means sRGB: 0.45455
ROWS = 256  # converted at a time, so that a conversion needs little memory
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True)
class Tags:
    """Primaries, and the power that makes levels linear; 0 for the curve of sRGB."""

    primaries: Primaries
    gamma: float = 0.0
    note: str = ""
    """Why colour is left as it is; the other fields have no meaning then."""


def coded(primaries: int, transfer: int, where: str) -> Tags | None:
    """Return the colour of two codes of ITU-T H.273, None for sRGB."""
    if transfer in HDR:
        return Tags(SRGB, note=f"HDR colour ({HDR[transfer]}) of its {where} was read as sRGB")
    known = {**PRIMARIES, UNSPECIFIED: SRGB}.get(primaries)
    if known is None or transfer not in {*SDR, *GAMMAS}:
        return Tags(SRGB, note=f"colour of its {where} ({primaries}, {transfer}) is unknown and was read as sRGB")
    gamma = GAMMAS.get(transfer, 0.0)
    return Tags(known, gamma) if gamma or not _same(known, SRGB) else None


def of_png(data: bytes) -> Tags | None:
    """Return the colour of a PNG's chunks, None for sRGB or where the profile decides.

    cICP comes before iCCP, then sRGB, then gAMA and cHRM (PNG specification, third edition, 4.3).
    """
    chunks = dict(_chunks(data))
    cicp = chunks.get(b"cICP", b"")
    if len(cicp) == 4:
        return coded(cicp[0], cicp[1], "cICP chunk")
    if {b"iCCP", b"sRGB"} & chunks.keys() or not {b"gAMA", b"cHRM"} & chunks.keys():
        return None
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4], "big") / 100_000
    values = [int.from_bytes(chunks.get(b"cHRM", b"")[i : i + 4], "big") / 100_000 for i in range(0, 32, 4)]
    white, red, green, blue = zip(values[::2], values[1::2], strict=True)
    primaries: Primaries = (red, green, blue, white)
    if not all(0 < y < 1 and 0 <= x < 1 for x, y in primaries):
        primaries = SRGB
    power = 0.0 if gamma == 0 or SRGB_GAMMA[0] < gamma < SRGB_GAMMA[1] else 1 / gamma
    if not power and _same(primaries, SRGB):
        return None
    return Tags(primaries, power) if power < 10 else Tags(SRGB, note="its gAMA chunk is no gamma and was left out")


def has_gain_map(data: bytes) -> bool:
    """Return whether a JPEG, HEIC or AVIF file names a gain map, which makes an HDR picture of it."""
    return any(mark in data for mark in GAIN_MAPS) or (data[4:8] == b"ftyp" and GAIN_ITEM in data[:BOXES])


def converted(pixels: Pixels, tags: Tags) -> Pixels:
    """Return RGB pixels as sRGB; colours outside of sRGB are clipped."""
    levels = np.arange(256) / 255
    linear = (levels**tags.gamma if tags.gamma else _linear(levels)).astype(np.float32)
    matrix = (np.linalg.inv(_to_xyz(SRGB)) @ _adapted(tags.primaries) @ _to_xyz(tags.primaries)).astype(np.float32)
    out = np.empty_like(pixels)
    for top in range(0, len(pixels), ROWS):
        light = (linear[pixels[top : top + ROWS]] @ matrix.T).clip(0, 1)
        out[top : top + ROWS] = np.rint(255 * _encoded(light)).astype(np.uint8)
    return out


def _linear(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """IEC 61966-2-1, the curve of sRGB."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _encoded(light: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** np.float32(1 / 2.4) - np.float32(0.055))


def _to_xyz(primaries: Primaries) -> NDArray[np.float64]:
    """Return the matrix from linear RGB to CIE XYZ, white at Y = 1."""
    columns = np.array([_xyz(x, y) for x, y in primaries[:3]]).T
    scaled: NDArray[np.float64] = columns * np.linalg.solve(columns, _xyz(*primaries[3]))
    return scaled


def _adapted(primaries: Primaries) -> NDArray[np.float64]:
    """Return the Bradford adaptation from a white to D65."""
    ratio = (BRADFORD @ _xyz(*D65)) / (BRADFORD @ _xyz(*primaries[3]))
    matrix: NDArray[np.float64] = np.linalg.inv(BRADFORD) @ np.diag(ratio) @ BRADFORD
    return matrix


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _same(one: Primaries, other: Primaries) -> bool:
    return bool(np.abs(np.array(one) - np.array(other)).max() < CLOSE)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of the chunks before the pixels."""
    at = 8
    while at + 12 <= len(png) and (kind := png[at + 4 : at + 8]) != b"IDAT":
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        yield kind, png[at + 8 : end]
        at = end + 4
