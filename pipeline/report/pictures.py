"""The pictures of a report: before, after, amplified change and face crops of one photo, small."""

import hashlib
import io
import math
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from dladiff.errors import PhotoError, StorageError
from pipeline.records.checked import stored_fault
from pipeline.report.sample import Row
from pipeline.sources.decode import Decoded, UInt8, decode
from pipeline.sources.originals import CHANGED, Originals, stored_limit, why
from pipeline.storage.base import Storage

FACTOR = 7  # 18 grey levels, both layers' bounds together, become 126: black and white are just reached
FACE = 256  # px, longest side of a face crop
AROUND = 0.3  # of the face box, kept on each side
QUALITY = 82  # of WebP


def pictures(row: Row, storage: Storage, sources: Originals | None, side: int) -> tuple[dict[str, bytes], str, str]:
    """Return WebP files (before, after, change, face crops) of one photo, as far as they can be read.

    Then what is said on the page of those that cannot, and why its original is not among them, for the operator alone:
    the page would tell whoever wrote the output which files are there.
    `side` is their longest side, px. Without `sources` neither originals nor the change, which would give them away,
    are among them.
    """
    found, missing, reason = _pictures(row, storage, sources, side)
    return {name: _webp(pixels, icc) for name, (pixels, icc) in found.items()}, missing, reason


def _pictures(
    row: Row, storage: Storage, sources: Originals | None, side: int
) -> tuple[dict[str, tuple[UInt8, bytes | None]], str, str]:
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


def _original(row: Row, sources: Originals) -> tuple[Decoded | None, str]:
    """The original, or why it cannot be shown."""
    try:
        data = sources.read(row["source_uri"])
    except StorageError as error:
        return None, why(error)
    found = _read(row, "source", lambda: data)
    return (None, CHANGED) if isinstance(found, str) else (found, "")


def _read(row: Row, which: str, get: Callable[[], bytes]) -> Decoded | str:
    """The photo, or why it cannot be shown: only the very bytes that were recorded count."""
    try:
        data = get()
        if hashlib.sha256(data).hexdigest() != row[f"{which}_sha256"]:
            return "the file has changed since (another checksum)"
        photo = decode(data, max_pixels=row["width"] * row["height"], min_side=1)
    except (PhotoError, StorageError) as error:
        return str(error)
    fits = photo.pixels.shape[:2] == (row["height"], row["width"])
    return photo if fits else "its size is not the recorded one"


def _small(pixels: UInt8, side: int) -> UInt8:
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _change(before: UInt8, after: UInt8, side: int) -> UInt8:
    """The change of sampled pixels, FACTOR times, about grey: averaging neighbours would hide most of it."""
    step = max(1, math.ceil(max(before.shape[:2]) / side))
    change = after[::step, ::step].astype(np.int16) - before[::step, ::step]
    amplified: UInt8 = np.clip(128 + FACTOR * change, 0, 255).astype(np.uint8)
    return amplified


def _face(pixels: UInt8, box: Iterable[float]) -> UInt8:
    """A square around a face, in the photo's own pixels unless it is larger than FACE."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0) * (0.5 + AROUND)
    half = max(4.0, min(half, width / 2, height / 2))
    x, y = (min(max((a + b) / 2, half), size - half) for a, b, size in ((x0, x1, width), (y0, y1, height)))
    crop = pixels[int(y - half) : int(y + half), int(x - half) : int(x + half)]
    return _small(crop if crop.size else pixels, FACE)  # empty where the whole photo is smaller than a crop


def _webp(pixels: UInt8, icc: bytes | None) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=QUALITY, icc_profile=icc or b"")
    return out.getvalue()
