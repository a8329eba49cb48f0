"""The pictures of a report: before, after, amplified change and face crops of one photo, scaled down."""

import hashlib
import io
import math
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.errors import PhotoError, StorageError
from pipeline.records.checked import stored_fault
from pipeline.records.schema import PhotoRow
from pipeline.sources.decode import Decoded, decode
from pipeline.sources.originals import CHANGED, Originals, stored_limit, why
from pipeline.storage.base import Storage

FACTOR = 7  # 18 grey levels, the sum of both layers' bounds, become 126: just black or white
FACE = 256  # px, longest side of a face crop
AROUND = 0.3  # margin around the face box on each side, in units of the box
QUALITY = 82  # WebP quality


def pictures(
    row: PhotoRow, storage: Storage, sources: Originals | None, side: int
) -> tuple[dict[str, bytes], str, str]:
    """Return WebP files of one photo, a note for the page on missing ones, and why the original is missing.

    The files are before, after, change and face crops, as far as readable; `side` is their longest side, px. Without
    `sources` there are no originals and no change, from which they could be computed. The reason for a missing
    original is for the operator: on the page it would show forgers of the output which files exist.
    """
    found, missing, reason = _pictures(row, storage, sources, side)
    return {name: _webp(pixels, icc) for name, (pixels, icc) in found.items()}, missing, reason


def _pictures(
    row: PhotoRow, storage: Storage, sources: Originals | None, side: int
) -> tuple[dict[str, tuple[Pixels, bytes | None]], str, str]:
    if not row["output_key"]:
        return {}, "No protected photo was stored.", ""
    fault = stored_fault(row)
    after = fault or _read(row, "output", lambda: storage.get(row["output_key"], stored_limit(row)))
    if isinstance(after, str):
        return {}, f"Protected photo not readable: {after}", ""
    before, reason = _original(row, sources) if sources else (None, "")
    both = {"after": after} if before is None else {"before": before, "after": after}
    found = {name: (_small(photo.pixels, side), photo.icc) for name, photo in both.items()}
    if row["faces"]:
        found |= {f"face_{n}": (_face(p.pixels, row["faces"][0]["box"]), p.icc) for n, p in both.items()}
    if before is None:
        return found, "Original not reachable." if reason else "", reason
    return found | {"change": (_change(before.pixels, after.pixels, side), None)}, "", ""


def _original(row: PhotoRow, sources: Originals) -> tuple[Decoded | None, str]:
    """Return the original, or None and the reason."""
    try:
        data = sources.read(row["source_uri"])
    except StorageError as error:
        return None, why(error)
    found = _read(row, "source", lambda: data)
    return (None, CHANGED) if isinstance(found, str) else (found, "")


def _read(row: PhotoRow, which: str, get: Callable[[], bytes]) -> Decoded | str:
    """Return the photo, or the reason: bytes must have the recorded checksum, pixels the recorded size."""
    try:
        data = get()
        if hashlib.sha256(data).hexdigest() != row[f"{which}_sha256"]:
            return "the file has changed since (another checksum)"
        photo = decode(data, max_pixels=row["width"] * row["height"], min_side=1)
    except (PhotoError, StorageError) as error:
        return str(error)
    fits = photo.pixels.shape[:2] == (row["height"], row["width"])
    return photo if fits else "its size is not the recorded one"


def _small(pixels: Pixels, side: int) -> Pixels:
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _change(before: Pixels, after: Pixels, side: int) -> Pixels:
    """Return the change of every n-th pixel, times FACTOR, around grey; averaging would hide most of it."""
    step = max(1, math.ceil(max(before.shape[:2]) / side))
    change = after[::step, ::step].astype(np.int16) - before[::step, ::step]
    amplified: Pixels = np.clip(128 + FACTOR * change, 0, 255).astype(np.uint8)
    return amplified


def _face(pixels: Pixels, box: Iterable[float]) -> Pixels:
    """Return a square around a face, scaled down to FACE if larger."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0) * (0.5 + AROUND)
    half = max(4.0, min(half, width / 2, height / 2))
    x, y = (min(max((a + b) / 2, half), size - half) for a, b, size in ((x0, x1, width), (y0, y1, height)))
    crop = pixels[int(y - half) : int(y + half), int(x - half) : int(x + half)]
    return _small(crop if crop.size else pixels, FACE)  # empty if the photo is smaller than a crop


def _webp(pixels: Pixels, icc: bytes | None) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=QUALITY, icc_profile=icc or b"")
    return out.getvalue()
