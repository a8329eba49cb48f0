"""The page of `dladiff preview`: one photo and its protected versions, with a comparison and their scores."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from dladiff.core.arrays import Pixels
from pipeline.records.schema import finite
from pipeline.report.page import asset, embedded, filled
from pipeline.report.preview_worker import Done
from pipeline.report.write import cosine, number
from pipeline.sources.decode import Decoded

MARK = '<meta name="dladiff-page" content="preview">'
"""The line of the page by which a later preview recognises it and may replace it."""
SIDE = 1600  # px, longest side of a picture: four lossless pictures of 1600 px take some 20 MB
AROUND = 2.0  # side of the detail, in units of the face's longer side: the face with its surroundings
MIN_SIDE = 256  # px, shortest side of the detail: a small face is shown with its surroundings
CHOSEN = "balanced"  # the strength that the page shows first
MEANING = {
    "faint": "Hardly seen, even side by side. Protects least.",
    "balanced": "Seen in a close comparison. The default.",
    "strong": "Seen without a comparison. Protects most.",
}
SCALE = {
    90.0: "not distinguishable side by side",
    70.0: "high quality",
    50.0: "medium quality",
    30.0: "low quality",
}
"""SSIMULACRA2's own words, by the lowest score of each."""
LOWEST = "very low quality"


@dataclass(frozen=True)
class Picture:
    """The original: its file's name and its pixels."""

    name: str
    decoded: Decoded


@dataclass(frozen=True)
class Crop:
    """A square of the photo at full size, px."""

    x: int
    y: int
    width: int
    height: int


def render(original: Picture, done: Mapping[str, Done], profile: str, notes: list[str]) -> str:
    """Return the page: self-contained, values escaped; its policy allows no connections."""
    decoded = original.decoded
    height, width = decoded.pixels.shape[:2]
    faces = next(iter(done.values())).photo.faces
    crop = detail(width, height, [face["box"] for face in faces]) if max(width, height) > SIDE else None
    versions = {"original": decoded.pixels} | {
        name: one.photo.codec.stored(one.photo.pixels) for name, one in done.items()
    }
    pictures = {name: _pictures(pixels, decoded, crop) for name, pixels in versions.items()}
    scores = [
        ("SSIMULACRA2, whole photo", [_score(one.photo.ssimulacra2) for one in done.values()]),
        ("SSIMULACRA2, face", [_score(one.photo.ssimulacra2_face) for one in done.values()]),
        ("PSNR", [_psnr(one.photo.psnr) for one in done.values()]),
    ]
    return filled(
        "preview.html.j2",
        asset("report.css", "preview.css"),
        asset("preview.js"),
        filters={"number": number, "cosine": cosine},
        mark=Markup(MARK),
        name=original.name,
        width=width,
        height=height,
        side=SIDE,
        crop=crop,
        faces=len(faces),
        profile=profile,
        notes=notes,
        failed=any(one.photo.status == "failed" for one in done.values()),
        transparent=decoded.alpha is not None,
        pictures=pictures,
        done=done,
        meaning=MEANING,
        chosen=CHOSEN,
        scores=scores,
        scale=SCALE,
        similarity=[
            (title, _encoders(done, optimised=kind))
            for title, kind in (("Optimised encoders", True), ("Held-out encoders", False))
        ],
        reasons={name: one.photo.reason for name, one in done.items() if one.photo.reason},
    )


def words(score: float) -> str:
    """Return what a score of SSIMULACRA2 means."""
    return next((text for least, text in SCALE.items() if score >= least), LOWEST)


def detail(width: int, height: int, boxes: Iterable[Iterable[float]]) -> Crop:
    """Return the square around the largest face, or in the middle of the photo; at most SIDE, inside the photo."""
    largest = max(map(tuple, boxes), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=None)
    x, y, side = width / 2, height / 2, float(SIDE)
    if largest is not None:
        x0, y0, x1, y1 = largest
        x, y, side = (x0 + x1) / 2, (y0 + y1) / 2, max(MIN_SIDE, AROUND * max(x1 - x0, y1 - y0))
    wide, high = (max(1, min(round(side), SIDE, length)) for length in (width, height))
    return Crop(_start(x, wide, width), _start(y, high, height), wide, high)


def _start(middle: float, part: int, length: int) -> int:
    return min(max(0, round(middle - part / 2)), length - part)


def _pictures(pixels: Pixels, decoded: Decoded, crop: Crop | None) -> dict[str, str]:
    """Return the `data:` URIs of a version: `whole`, and `detail` where the whole photo is scaled."""
    if decoded.alpha is not None:  # two transparent pictures over each other would shine through
        alpha = decoded.alpha[:, :, None].astype(np.float32) / 255
        pixels = (pixels * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    if crop is None:
        return {"whole": _png(Image.fromarray(pixels), decoded.icc)}
    part = pixels[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]
    whole = Image.fromarray(pixels)
    whole.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return {"whole": _png(whole, decoded.icc), "detail": _png(Image.fromarray(np.ascontiguousarray(part)), decoded.icc)}


def _png(image: Image.Image, icc: bytes | None) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", icc_profile=icc)
    return embedded(out.getvalue(), "image/png")


def _score(value: float) -> tuple[str, str]:
    return (number(finite(value)), words(value)) if finite(value) is not None else (number(None), "not measured")


def _psnr(value: float) -> tuple[str, str]:
    return (f"{number(value)} dB" if finite(value) is not None else "unchanged", "")


def _encoders(done: Mapping[str, Done], *, optimised: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return (encoder, its entry of each strength), {} where a strength has none."""
    entries = [
        {entry["encoder"]: entry for entry in one.photo.similarity if entry["optimised"] is optimised}
        for one in done.values()
    ]
    names = dict.fromkeys(name for found in entries for name in found)
    return [(name, [found.get(name, {}) for found in entries]) for name in names]
