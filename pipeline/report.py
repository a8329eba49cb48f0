"""`dladiff report`: one HTML file that shows what was done to the photos and what it bought; it sends nothing."""

import hashlib
import io
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from PIL import Image

from dladiff.errors import ConfigError, PhotoError, StorageError
from pipeline.page import asset, embedded, environment, policy
from pipeline.photos import Decoded, UInt8, decode
from pipeline.report_data import LISTED, Encoder, Facts, Row, Series, gather, seconds_of, similarity
from pipeline.storage import Storage, open_storage, read_uri

KEY = "report/index.html"
EMBEDDED = 200  # photos whose pictures lie in the page itself: some 10 to 15 MB
FACTOR = 7  # 18 grey levels, both layers' bounds together, become 126: black and white are just reached
FEW = 24  # up to that many photos the pictures are large
SIDE, SIDE_FEW = 320, 640  # px, longest side of a picture
FACE = 256  # px, longest side of a face crop
AROUND = 0.3  # of the face box, kept on each side
READERS = 2  # photos decoded at a time: each may be large
QUALITY = 82  # of WebP

Sink = Callable[[str, bytes], str]
"""Takes a picture's name and bytes, returns what stands in `src`."""


@dataclass(frozen=True)
class Written:
    """Where the page is, how many photos it shows, of how many, and its size in bytes."""

    report: str
    shown: int
    photos: int
    bytes: int


def write_report(storage: Storage, html: Path | None = None, photos: int = EMBEDDED, seed: int = 0) -> Written:
    """Write the page of an output: to `report/index.html` in it, or to the local file `html`.

    At most `photos` photos are shown: the worst and slowest, and others drawn with `seed`. More than EMBEDDED need
    `html`: their pictures go into a folder beside it. Raises ConfigError and StorageError.
    """
    if photos > EMBEDDED and html is None:
        raise ConfigError([f"--photos: more than {EMBEDDED} pictures lie beside the page; give --html FILE too"])
    facts = gather(storage, photos, seed)
    target, key = (storage, KEY) if html is None else (open_storage(html.absolute().parent, create=True), html.name)
    rows = facts.sample.rows()
    linked = len(rows) > EMBEDDED
    sink = partial(_beside, target, f"{Path(key).stem}_files") if linked else _embedded
    opened: dict[str, Storage] = {}
    side = SIDE_FEW if len(rows) <= FEW else SIDE
    with ThreadPoolExecutor(READERS) as pool:
        make = partial(_card, storage=storage, opened=opened, sink=sink, side=side)
        cards = list(pool.map(make, range(len(rows)), rows))
    page = render(facts, cards, storage.uri, linked=linked).encode()
    target.put(key, page, "text/html; charset=utf-8")
    return Written(target.uri_of(key), len(cards), facts.photos.total(), len(page))


def render(facts: Facts, cards: list[Row], output: str, *, linked: bool) -> str:
    """Return the page. Every value is escaped, and characters that do not print are made visible.

    The page's own Content-Security-Policy allows its style, its script and its pictures, and no connection;
    `linked` says that the pictures lie beside the page.
    """
    templates = environment()
    templates.filters |= {"number": number, "cosine": cosine}
    css, js = asset("report.css"), asset("report.js")
    kinds = [facts.pooled(optimised=True), facts.pooled(optimised=False)]
    return templates.get_template("report.html.j2").render(
        facts=facts,
        cards=cards,
        total=facts.photos.total(),
        kinds=[kind for kind in kinds if kind.after.values],
        histograms=_histograms(facts, kinds),
        output=output,
        linked=linked,
        factor=FACTOR,
        listed=LISTED,
        policy=policy(css, js, "'self'" if linked else "data:"),
        css=Markup(css),  # ours, and the policy names their digests: they must stand unchanged
        js=Markup(js),
        version=version("dladiff"),
    )


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with a real minus sign and grouped thousands; a dash for None."""
    return "\N{EN DASH}" if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def cosine(value: float | None) -> str:
    """Return a cosine with two digits."""
    return number(value if value is None or abs(value) >= 0.005 else 0.0, 2)


def _embedded(name: str, data: bytes) -> str:
    return embedded(data)


def _beside(target: Storage, folder: str, name: str, data: bytes) -> str:
    target.put(f"{folder}/{name}", data, "image/webp")
    return quote(f"{folder}/{name}")


def _card(place: int, row: Row, storage: Storage, opened: dict[str, Storage], sink: Sink, side: int) -> Row:
    """Everything the page shows of one photo."""
    pictures, missing = _pictures(row, storage, opened, side)
    return {
        "name": PurePosixPath(row["source_uri"].rsplit("/", 1)[-1]).name,
        "seconds": seconds_of(row),
        "optimised": similarity(row, optimised=True),
        "held_out": similarity(row, optimised=False),
        "groups": [
            (title, [s for s in row["similarity"] or [] if s["optimised"] is kind])
            for title, kind in (("Optimised encoders", True), ("Held-out encoders", False))
        ],
        "pictures": {
            name: sink(f"{place:05d}-{name}.webp", _webp(pixels, icc)) for name, (pixels, icc) in pictures.items()
        },
        "missing": missing,
        "row": row,
    }


def _pictures(
    row: Row, storage: Storage, opened: dict[str, Storage], side: int
) -> tuple[dict[str, tuple[UInt8, bytes | None]], str]:
    """Before, after, change and face crops of one photo, as far as they can be read, and what is missing."""
    if not row["output_key"]:
        return {}, "No protected photo was stored."
    after = _read(row, "output", lambda: storage.get(row["output_key"]))
    if isinstance(after, str):
        return {}, f"Protected photo not readable: {after}"
    before = _read(row, "source", lambda: read_uri(row["source_uri"], opened))
    both = {"after": after} if isinstance(before, str) else {"before": before, "after": after}
    pictures = {name: (_small(photo.pixels, side), photo.icc) for name, photo in both.items()}
    if row["faces"]:
        pictures |= {f"face_{n}": (_face(p.pixels, row["faces"][0]["box"]), p.icc) for n, p in both.items()}
    if isinstance(before, str):
        return pictures, f"Original not reachable: {before}"
    return pictures | {"change": (_change(before.pixels, after.pixels, side), None)}, ""


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
    return _small(crop, FACE)


def _webp(pixels: UInt8, icc: bytes | None) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=QUALITY, icc_profile=icc or b"")
    return out.getvalue()


def _histograms(facts: Facts, kinds: list[Encoder]) -> list[dict[str, Any]]:
    plots = [
        _histogram(f"Similarity, {kind.name} encoders", "cosine", 2, {"before": kind.before, "after": kind.after}, 0.1)
        for kind in kinds
    ]
    plots += [
        _histogram("PSNR, whole photo", "dB", 1, {"after": facts.psnr}, 1),
        _histogram("PSNR, face", "dB", 1, {"after": facts.psnr_face}, 1),
        _histogram("SSIM", "", 3, {"after": facts.ssim}, 0.01),
        _histogram("Time a photo", "s", 1, {"after": facts.seconds}, 1),
    ]
    return [plot for plot in plots if plot["count"]]


def _histogram(title: str, unit: str, digits: int, series: dict[str, Series], grid: float) -> dict[str, Any]:
    """Bars of equal width between the smallest and largest value, widened to multiples of `grid`."""
    values = [v for one in series.values() for v in one.values]
    if not values:
        return {"count": 0}
    low = math.floor(min(values) / grid + 1e-9) * grid
    high = max(math.ceil(max(values) / grid - 1e-9) * grid, low + grid)
    counts = {name: one.bins(low, high) for name, one in series.items()}
    top = max(n for bins in counts.values() for n in bins)
    return {
        "title": title,
        "unit": unit,
        "digits": digits,
        "low": low,
        "high": high,
        "count": len(series["after"].values),
        "spread": series["after"].spread,
        "top": top,
        "bars": {name: [n / top for n in bins] for name, bins in counts.items()},
    }
