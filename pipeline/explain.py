"""`dladiff explain`: one HTML page of what a surrogate sees in a photo and its protected version, and of the traces."""

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dladiff.errors import ConfigError, NotFoundError, StorageError
from pipeline.config import RunConfig
from pipeline.manifest import GROUP, PHOTOS_KEY
from pipeline.names import key_fault, shown
from pipeline.page import asset, embedded, filled
from pipeline.pages import announce, mark
from pipeline.photos import UInt8, decode
from pipeline.private import private_files
from pipeline.rows import parquet
from pipeline.storage import Storage, local_path, open_storage, read_uri
from pipeline.trace import Curve, curves_of

MOST_CURVES = 24
MOST = 8  # photos of the identity that the fine-tuned weights learn from, as the method's own clean set
SIDE = 256  # px of a picture
STOPS = np.array([[24, 20, 60], [190, 60, 70], [255, 190, 70], [255, 255, 230]])  # from no attention to the most


@dataclass(frozen=True)
class Explained:
    """Where the page is, of whom, how far each weights' maps of the two photos agree (correlation); what to know."""

    page: str
    identity: str
    photos: int
    correlations: dict[str, float]
    notes: list[str]


def explain(photo: str, settings: RunConfig, html: Path) -> Explained:
    """Find the photo in the run by its address or else its bytes, read the maps, write the page.

    Works in this process, with the models of `settings`. Raises ConfigError, PhotoError, ModelError, StorageError.
    """
    storage, opened = open_storage(settings.output), dict[str, Storage]()
    rows, others = _rows(storage, hashlib.sha256(_bytes(photo, opened)).hexdigest(), photo)
    notes = _notes(rows[0], others, settings)
    from dladiff.explain import PHOTOS as BOTH
    from dladiff.explain import WEIGHTS, Pair, correlation
    from dladiff.explain import explain as read_maps
    from dladiff.service import Protector

    pairs = [Pair(*(_pixels(row, side, storage, opened, settings) for side in ("source", "output"))) for row in rows]
    here = settings.method_settings() | {"gpu": None}  # one photo: whatever this machine has
    protector = Protector(here, settings.seed, settings.cpus_per_actor)
    found = read_maps(pairs, 0, protector.models, protector.config, settings.seed)
    most = max(values.max() for values in found.maps.values())
    cards: list[dict[str, Any]] = [
        {
            "weights": weights,
            "pictures": [
                (f"{name} photo", embedded(_webp(_heat(found.squares[name], found.maps[weights, name] / most))))
                for name in BOTH
            ],
            "agree": correlation(*(found.maps[weights, name] for name in BOTH)),
        }
        for weights in WEIGHTS
    ]
    squares = [(f"{name} photo", embedded(_webp(found.squares[name]))) for name in BOTH]
    identity = rows[0]["identity"]
    curves = curves_of(storage, identity, MOST_CURVES)[0]
    page = render(rows[0], squares, cards, curves, protector.config.finetuning.prompt, mark(storage.uri))
    with private_files(settings.umask):
        noted = announce(open_storage(settings.output, s3=settings.s3), "explain", html, [identity])
        open_storage(html.absolute().parent, create=True).put(html.name, page.encode(), "text/html; charset=utf-8")
        noted()
    agree = {card["weights"]: round(card["agree"], 3) for card in cards}
    return Explained(str(html), identity, len(pairs), agree, notes)


def render(
    row: Mapping[str, Any], squares: list[Any], cards: list[Any], curves: list[Curve], prompt: str, mark: str
) -> str:
    """Return the page: self-contained, every value escaped, no connection allowed by its own policy."""
    css = asset("report.css", "curves.css", "explain.css")
    values: dict[str, Any] = {"row": row, "squares": squares, "cards": cards, "curves": curves, "prompt": prompt}
    values["mark"] = mark  # of the output, by which `dladiff retention` knows the page
    return filled("explain.html.j2", css, **values)


def _rows(storage: Storage, sha256: str, photo: str) -> tuple[list[dict[str, Any]], int]:
    """Return the manifest's row of this photo, then others of its identity; and how many other identities hold it.

    A row of this address is the photo's own, else one of these bytes; of several identities, the first by name.
    """
    try:
        manifest = parquet(storage.get(PHOTOS_KEY))
    except NotFoundError as error:
        raise StorageError(f"{storage.uri} holds no {PHOTOS_KEY}; give the output of `dladiff protect`") from error

    def having(wanted: Callable[[pa.RecordBatch], pa.Array]) -> list[dict[str, Any]]:
        batches = (batch.filter(wanted(batch)) for batch in manifest.iter_batches(GROUP))
        return [row for batch in batches for row in batch.to_pylist()]

    names = pa.array(_addresses(photo), pa.string())
    found = having(
        lambda rows: pc.or_kleene(pc.is_in(rows["source_uri"], names), pc.equal(rows["source_sha256"], sha256))
    )
    own, others = _own(found, sha256, photo)
    same = having(lambda rows: pc.equal(rows["identity"], own["identity"]))
    rest = [row for row in same if row["output_key"] and row["source_sha256"] != own["source_sha256"]]
    return [own, *rest[: MOST - 1]], others


def _own(found: list[dict[str, Any]], sha256: str, photo: str) -> tuple[dict[str, Any], int]:
    """Choose of the rows of this address or of these bytes; and count the other identities that hold the photo."""
    here = next((rows for name in _addresses(photo) if (rows := [r for r in found if r["source_uri"] == name])), [])
    rows = sorted(here or found, key=lambda row: (row["source_sha256"] != sha256, row["identity"], row["source_uri"]))
    done = [row for row in rows if row["output_key"]]
    if not done:
        why = "no protected photo of this run was made from these bytes"
        why = f"this run did not protect it: {shown(here[0]['reason'] or '')}" if here else why
        raise ConfigError([f"{shown(photo)}: {why}"])
    holders = {row["identity"] for row in done if row["source_sha256"] == done[0]["source_sha256"]}
    return done[0], len(holders) - 1


def _addresses(photo: str) -> list[str]:
    """Return how a manifest may name this photo: as given, with the links in the way to it followed, or its own too."""
    path = local_path(photo)
    if path is None:
        return [photo]
    found = (str(name) for name in (path.absolute(), path.parent.resolve() / path.name, path.resolve()))
    return [name for name in found if key_fault(name[1:]) is None]  # others stand in no manifest


def _notes(row: Mapping[str, Any], others: int, settings: RunConfig) -> list[str]:
    notes = []
    if others:
        notes.append(
            f"other identities that hold the same photo: {others}; give its address in the input to choose one"
        )
    if row["config_digest"] and row["config_digest"] != settings.config_digest():
        notes.append("the photo was protected with other settings or weights; give the run's --config and --profile")
    return notes


def _bytes(photo: str, opened: dict[str, Storage]) -> bytes:
    if re.match(r"[a-z0-9]+://", photo):
        return read_uri(photo, opened)
    try:
        return Path(photo).read_bytes()
    except OSError as error:
        raise ConfigError([f"{shown(photo)}: {error.strerror or error}"]) from error


def _pixels(
    row: Mapping[str, Any], side: str, storage: Storage, opened: dict[str, Storage], settings: RunConfig
) -> UInt8:
    data = storage.get(row["output_key"]) if side == "output" else read_uri(row["source_uri"], opened)
    if hashlib.sha256(data).hexdigest() != row[f"{side}_sha256"]:
        raise StorageError(f"{shown(row[f'{side}_uri'])} is no longer what the manifest says; run protect again")
    return np.array(decode(data, max_pixels=settings.max_pixels).pixels)  # writable: torch shares the memory


def _heat(square: UInt8, values: Any) -> UInt8:
    """Lay a map (cells in 0..1) over a grey version of the square: the brighter, the more attention."""
    side = (SIDE, SIDE)
    smooth = Image.fromarray((values * 255).round().astype(np.uint8)).resize(side, Image.Resampling.BILINEAR)
    level = np.asarray(smooth, dtype=np.float64) / 255
    heat = np.stack([np.interp(level, np.linspace(0, 1, len(STOPS)), STOPS[:, c]) for c in range(3)], axis=-1)
    grey = np.asarray(Image.fromarray(square).convert("L").resize(side, Image.Resampling.BILINEAR), np.float64)
    mixed: UInt8 = (0.35 * grey[..., None] + 0.65 * heat).round().astype(np.uint8)
    return mixed


def _webp(pixels: UInt8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "WEBP", quality=90)
    return file.getvalue()
