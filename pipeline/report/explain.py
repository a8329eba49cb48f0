"""`dladiff explain`: one HTML page of a surrogate's attention on a photo and its protected version, and traces."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.errors import ConfigError, NotFoundError, PhotoError, StorageError
from dladiff.settings.schema import encoder_fault
from pipeline.config import RunConfig
from pipeline.process.private import private_files
from pipeline.records.checked import photo_fault, stored_fault
from pipeline.records.manifest import GROUP, PHOTOS_KEY
from pipeline.records.pages import announce, mark
from pipeline.records.schema import NO_PARQUET, PHOTOS, PhotoRow, parquet, with_later
from pipeline.records.trace import Curve, curves_of
from pipeline.report.page import asset, embedded, filled
from pipeline.sources import shards
from pipeline.sources.decode import decode
from pipeline.sources.originals import CHANGED, MAX_PHOTO, Originals, originals, stored_limit, why
from pipeline.storage.base import Storage
from pipeline.storage.keys import key_fault, shown
from pipeline.storage.open import local_path, open_storage, read_uri

MAX_CURVES = 24  # curves on the page
MAX_PHOTOS = 8  # photos of the identity for fine-tuning, like the method's clean set
SIDE = 256  # px of a picture
STOPS = np.array([[24, 20, 60], [190, 60, 70], [255, 190, 70], [255, 255, 230]])  # RGB, from no attention to most


@dataclass(frozen=True)
class Explained:
    """Path of the page, identity, photos used, correlation of both photos' maps by weights, notes."""

    page: str
    identity: str
    photos: int
    correlations: dict[str, float]
    notes: list[str]


def explain(photo: str, settings: RunConfig, html: Path, inputs: Sequence[str] = ()) -> Explained:
    """Find the photo in the run by its address, else by its bytes; compute the maps; write the page.

    Runs in this process with the models of `settings`. Originals other than `photo` are read below `inputs`, else below
    the input that the output records. Raises ConfigError, PhotoError, ModelError, StorageError.
    """
    storage, data = open_storage(settings.output), _bytes(photo)
    rows, others = _rows(storage, hashlib.sha256(data).hexdigest(), photo)
    notes = _notes(rows[0], others, settings)
    from dladiff.explain import PHOTOS as BOTH
    from dladiff.explain import WEIGHTS, Pair, correlation
    from dladiff.explain import explain as read_maps
    from dladiff.service import Protector

    pairs = [Pair(*both) for both in _pairs(rows, storage, data, inputs, settings, notes)]
    here = settings.method_settings() | {"gpu": None}  # one photo: use what this machine has
    if encoder_fault(settings.method_config()):  # the maps need no encoder
        here["overrides"]["layers"] = "finetuning"
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
    curves = _curves(storage, identity, notes)
    page = render(rows[0], squares, cards, curves, protector.config.finetuning.prompt, mark(storage.uri))
    with private_files(settings.umask):
        noted = announce(open_storage(settings.output, s3=settings.s3), "explain", html, [identity])
        open_storage(html.absolute().parent, create=True).put(html.name, page.encode(), "text/html; charset=utf-8")
        noted()
    agree = {card["weights"]: round(card["agree"], 3) for card in cards}
    return Explained(str(html), identity, len(pairs), agree, notes)


def _curves(storage: Storage, identity: str, notes: list[str]) -> list[Curve]:
    try:
        return curves_of(storage, identity, MAX_CURVES)[0]
    except StorageError as error:
        notes.append(str(error))
        return []


def render(
    row: Mapping[str, Any], squares: list[Any], cards: list[Any], curves: list[Curve], prompt: str, mark: str
) -> str:
    """Return the page: self-contained, values escaped; its policy allows no connections."""
    css = asset("report.css", "curves.css", "explain.css")
    values: dict[str, Any] = {"row": row, "squares": squares, "cards": cards, "curves": curves, "prompt": prompt}
    values["mark"] = mark  # `dladiff retention` recognises the page by it
    return filled("explain.html.j2", css, **values)


def _rows(storage: Storage, sha256: str, photo: str) -> tuple[list[PhotoRow], int]:
    """Return the photo's manifest row, then others of its identity; and how many other identities have this photo.

    The photo's row is one with its address, else one with its bytes; of several identities the first by name.
    """
    try:
        manifest = parquet(storage.get(PHOTOS_KEY), PHOTOS)
    except NotFoundError as error:
        raise StorageError(f"{storage.uri} holds no {PHOTOS_KEY}; give the output of `dladiff protect`") from error
    except NO_PARQUET as error:
        raise _unreadable(storage) from error

    def having(wanted: Callable[[pa.RecordBatch], pa.Array]) -> list[PhotoRow]:
        try:
            batches = (batch.filter(wanted(batch)) for batch in manifest.iter_batches(GROUP, columns=PHOTOS.names))
            found = (row for batch in batches for row in with_later(batch, PHOTOS).to_pylist())
            return [row for row in found if not photo_fault(row)]
        except NO_PARQUET as error:
            raise _unreadable(storage) from error

    names = pa.array(_addresses(photo), pa.string())
    found = having(
        lambda rows: pc.or_kleene(pc.is_in(rows["source_uri"], names), pc.equal(rows["source_sha256"], sha256))
    )
    own, others = _own(found, sha256, photo)
    same = having(lambda rows: pc.equal(rows["identity"], own["identity"]))
    rest = [row for row in same if row["output_key"] and row["source_sha256"] != own["source_sha256"]]
    return [own, *rest[: MAX_PHOTOS - 1]], others


def _unreadable(storage: Storage) -> StorageError:
    return StorageError(f"{storage.uri_of(PHOTOS_KEY)} cannot be read; run `dladiff finalise --output {storage.uri}`")


def _own(found: list[PhotoRow], sha256: str, photo: str) -> tuple[PhotoRow, int]:
    """Return the photo's own row among those with its address or bytes, and the number of other identities."""
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
    """Return the addresses a manifest may hold for this photo: absolute, folder links resolved, all links resolved."""
    path = local_path(photo)
    if path is None:
        return [photo]
    found = (str(name) for name in (path.absolute(), path.parent.resolve() / path.name, path.resolve()))
    return [name for name in found if key_fault(name[1:]) is None]  # a manifest holds no others


def _notes(row: Mapping[str, Any], others: int, settings: RunConfig) -> list[str]:
    notes = []
    if others:
        notes.append(
            f"other identities that have the same photo: {others}; give its address in the input to choose one"
        )
    if row["config_digest"] and row["config_digest"] != settings.config_digest():
        notes.append("the photo was protected with other settings or weights; give the run's --config and --profile")
    return notes


def _bytes(photo: str) -> bytes:
    """Return the bytes of the photo that the operator names, from any address."""
    if shards.split(photo):
        return shards.read_address(photo, MAX_PHOTO)
    if re.match(r"[a-z0-9]+://", photo):
        return read_uri(photo, {}, limit=MAX_PHOTO)
    try:
        return Path(photo).read_bytes()
    except OSError as error:
        raise ConfigError([f"{shown(photo)}: {error.strerror or error}"]) from error


def _pairs(
    rows: list[PhotoRow], storage: Storage, data: bytes, inputs: Sequence[str], settings: RunConfig, notes: list[str]
) -> list[tuple[Pixels, Pixels]]:
    """Return original and protected pixels of each photo; unreadable ones are skipped with a note.

    Raises PhotoError or StorageError if the first is unreadable.
    """
    own, *rest = rows
    sources = originals(storage, inputs) if rest or not _is_of(own, data) else Originals()
    notes += [sources.note] if sources.note else []
    source = data if _is_of(own, data) else sources.read(own["source_uri"])
    found, unread = [_pair(own, source, storage, settings)], Counter[str]()
    for row in rest:
        try:
            found.append(_pair(row, sources.read(row["source_uri"]), storage, settings))
        except StorageError as error:
            unread[why(error)] += 1
        except PhotoError:
            unread[CHANGED] += 1
    if unread:
        reasons = ", ".join(f"{reason} {count}" for reason, count in unread.most_common())
        notes.append(f"other photos of the identity that are not used: {reasons}")
    return found


def _is_of(row: PhotoRow, data: bytes) -> bool:
    return bool(hashlib.sha256(data).hexdigest() == row["source_sha256"])


def _pair(row: PhotoRow, source: bytes, storage: Storage, settings: RunConfig) -> tuple[Pixels, Pixels]:
    if fault := stored_fault(row):
        raise StorageError(f"{shown(row['source_uri'])} {fault}; run `dladiff finalise`, then protect")
    files = {"source": source, "output": storage.get(row["output_key"], stored_limit(row))}
    for side, data in files.items():
        if hashlib.sha256(data).hexdigest() != row[f"{side}_sha256"]:
            address = row["source_uri"] if side == "source" else storage.uri_of(row["output_key"])
            raise StorageError(f"{shown(address)} is no longer what the manifest says; run protect again")
    # a writable copy, whose memory torch shares
    before, after = (np.array(decode(data, max_pixels=settings.max_pixels).pixels) for data in files.values())
    if before.shape != after.shape:
        raise StorageError(f"{shown(row['source_uri'])} has another size than its protected photo; run protect again")
    return before, after


def _heat(square: Pixels, values: Any) -> Pixels:
    """Return a grey version of the square overlaid with a map (cells in [0, 1]): brighter means more attention."""
    side = (SIDE, SIDE)
    smooth = Image.fromarray((values * 255).round().astype(np.uint8)).resize(side, Image.Resampling.BILINEAR)
    level = np.asarray(smooth, dtype=np.float64) / 255
    heat = np.stack([np.interp(level, np.linspace(0, 1, len(STOPS)), STOPS[:, c]) for c in range(3)], axis=-1)
    grey = np.asarray(Image.fromarray(square).convert("L").resize(side, Image.Resampling.BILINEAR), np.float64)
    mixed: Pixels = (0.35 * grey[..., None] + 0.65 * heat).round().astype(np.uint8)
    return mixed


def _webp(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "WEBP", quality=90)
    return file.getvalue()
