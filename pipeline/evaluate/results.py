"""What an evaluation leaves: rows to results.parquet, tables.md, tables.html and contact sheets."""

import io
import json
import logging
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dladiff.errors import DamagedError, NotFoundError, TooLargeError
from dladiff.evaluation.metrics import METRICS
from dladiff.evaluation.metrics.record import Metric
from dladiff.evaluation.paper_layout import all_tables
from dladiff.evaluation.paper_tables import NAMES
from dladiff.evaluation.summaries import Group
from dladiff.evaluation.tables import Evaluation, markdown
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.page import render, write_sheets
from pipeline.evaluate.plan import EvaluationPlan
from pipeline.evaluate.ratings import Rating, opinions, read_ratings
from pipeline.records.checked import fits
from pipeline.records.commit import load, load_many
from pipeline.records.manifest import write_rows
from pipeline.records.schema import RESULTS
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

HEAD = (
    "Figures are means over images with a 95 % interval of a bootstrap over people (2,000 draws, for FID 200, seeded; "
    "with fewer than six people at most their range). All rows of a table are means over the same people and seeds: "
    "those of whom every method has measurements. `lost`: rows that failed / rows in which the thief had no photo with "
    "a face / photos in which it found none. ISM all counts a "
    "picture without a face as 0, ISM detected leaves it out; a star marks an encoder that the protection optimised "
    "against. Columns named `paper` are the paper's own numbers, of other models and photos: they are no result of "
    "this evaluation; it calls " + ", ".join(f"{ours} {theirs}" for ours, theirs in NAMES.items()) + "."
)

_NO_INCEPTION = "FID by Inception (no --features; a bundled encoder's features stand in a column named so)"
ABOUT = {"key", "identity", "condition", "attack", "base", "preprocessing", "share", "seed"}
ENCODER = ("name", "sha256")
MOST_FEATURES = 2**29  # bytes of the features of one attack: 16 pictures of two prompts take less than 1 MB
ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError)  # what a damaged archive raises
log = logging.getLogger(__name__)
STATUSES = ("done", "no_photo", "failed")
Row = dict[str, Any]


def collect(results: Storage, plan: EvaluationPlan) -> list[Row]:
    """Return the records of the plan's rows that are there: those of `rows/`, else failures."""
    done = {entry.key for entry in results.list("rows/")}
    failed = {entry.key for entry in results.list("failed/")}
    keys = []
    for row in plan.rows:
        places = (f"rows/{row['key']}.json", f"failed/{row['key']}.json")
        keys += [place for place, known in zip(places, (done, failed), strict=True) if place in known][:1]
    return [record for _, record in sound_rows(results, keys)]


def sound_rows(results: Storage, places: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """Yield (place, record) of the records that tables can be made of; others are left out with a warning."""
    return load_many(results, places, _load)


def _load(results: Storage, place: str) -> Row:
    """Read and check the record of one attack. Raises DamagedError, StorageError."""
    record = load(results, place)
    if fault := _record_fault(place, record):
        where = results.uri_of(place)
        raise DamagedError(f"{where} is no record of an evaluation ({fault}): delete it, and it is measured again")
    return record


def _record_fault(place: str, record: Row) -> str:
    """What is wrong with a record; "" for nothing: its columns can be made, and each has its type."""
    absent = any(record.get(name) is None for name in ABOUT) or record.get("dropped", 0) is None
    if record.get("status") not in STATUSES or absent:
        return "it has no known status, or does not say of what"
    key = record["key"]
    if place.partition("/")[2] != f"{key}.json" or record.get("features") not in (None, f"features/{key}.npz"):
        return "it is of another row than its name says"
    kinds = {"images": dict, "faces": dict, "protected": list, "prompts": list, "judge": list}
    measured = record["status"] != "failed"
    if any(not isinstance(record.get(name), kind) and (measured or name in record) for name, kind in kinds.items()):
        return "a part of it is missing"
    try:
        faces = [face for prompt in record.get("prompts", []) for face in record["faces"].get(prompt, [])]
        if not all(face.startswith(f"faces/{key}/") for own in record.get("faces", {}).values() for face in own):
            return "a face is of another row"
        named = [*faces, *record.get("prompts", []), *(e[name] for e in record.get("judge", []) for name in ENCODER)]
        flags = [float(p["nsfw"] or 0) for pictures in record.get("images", {}).values() for p in pictures]
        rows = list(flat_rows(record))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return "its measurements are not of the kind they should be"
    named += [record.get(name, "") for name in ("feature_network", "reference_set")]
    good = all(isinstance(name, str) for name in named) and all(map(math.isfinite, flags))
    fits_all = all(fits(row.get(field.name), field.type) for row in rows for field in RESULTS)
    return "" if good and fits_all else "its measurements are not of the kind they should be"


def write_results(results: Storage, config: EvaluateConfig, plan: EvaluationPlan) -> list[Row]:
    """Write results.parquet, tables.md, tables.html and sheets/; return the records they rest on."""
    records = collect(results, plan)
    write_rows(results, "results.parquet", (row for r in records for row in flat_rows(r)), RESULTS)
    found = evaluation(results, config, plan, records)
    tables = all_tables(found)
    about = _about(config, plan, records)
    text = f"# Evaluation\n\n{HEAD}\n\n" + "\n".join(f"- {line}" for line in about) + f"\n\n{markdown(tables)}"
    results.put("tables.md", shown_lines(text).encode(), "text/markdown; charset=utf-8")
    sheets = write_sheets(results, found)
    results.put(
        "tables.html", render(tables, HEAD.replace("`", ""), about, sheets).encode(), "text/html; charset=utf-8"
    )
    return records


def evaluation(results: Storage, config: EvaluateConfig, plan: EvaluationPlan, records: Sequence[Row]) -> Evaluation:
    """Gather what the tables are made of; features are read when a table asks for them."""

    widths: set[int] = set()  # of features: the first file's, which the others must share

    @lru_cache(maxsize=64)
    def read(place: str) -> list[NDArray[np.float32]]:
        found = _features(results, place)
        widths.update([] if widths else [part.shape[1] for part in found[:1]])
        return found if {part.shape[1] for part in found} <= widths else []

    def features(record: Any, prompt: str) -> NDArray[np.float32] | None:
        if not record.get("features"):
            return None
        if prompt and prompt not in record["prompts"]:
            return None
        parts, place = read(record["features"]), record["prompts"].index(prompt) if prompt else 0
        return parts[place] if place < len(parts) else None

    judge: list[dict[str, str]] = next((r["judge"] for r in records if "judge" in r), [])
    faces = {face for r in records for own in r.get("faces", {}).values() for face in own}
    network = next((r["feature_network"] for r in records if "feature_network" in r), "")
    return Evaluation(
        records=records,
        features=features,
        feature_name=network if config.features else f"{network}, not Inception",
        conditions=config.conditions,
        attacks=config.attacks,
        bases=config.bases,
        preprocessings=config.preprocessings,
        shares=config.shares,
        prompts=config.prompts,
        encoders=tuple(e["name"] for e in judge),
        optimised=frozenset(e["name"] for e in judge if {e["name"], e["sha256"]} & plan.optimised),
        opinions=opinions(r for r in _ratings(results) if r["face"] in faces),
    )


def _features(results: Storage, place: str) -> list[NDArray[np.float32]]:
    """The features of one attack, one array a prompt; none where they are gone or damaged: no FID of it."""
    try:
        with np.load(io.BytesIO(results.get(place, MOST_FEATURES)), allow_pickle=False) as stored:
            if sum(info.file_size for info in stored.zip.infolist()) > MOST_FEATURES:
                return []
            found = [stored[f"arr_{i}"] for i in range(len(stored.files))]
    except (NotFoundError, TooLargeError, ValueError, KeyError, OSError, EOFError, MemoryError, TypeError, *ZIP):
        return []
    good = all(p.ndim == 2 and p.size and p.dtype.kind == "f" and np.isfinite(p).all() for p in found)
    return found if good else []


def _ratings(results: Storage) -> list[Rating]:
    """What people said; nothing where the file is damaged."""
    try:
        return read_ratings(results)
    except DamagedError as error:
        log.warning("%s", shown(str(error)))
        return []


def flat_rows(record: Row) -> Iterable[Row]:
    """Yield rows of RESULTS: one a prompt, or one for a record that generated nothing."""
    images, own = record.get("images") or {"": []}, Group((record,))
    for prompt, pictures in images.items():
        means = {m.name: _mean(own, m.name, "", prompt) for m in METRICS.values() if not m.per_encoder}
        kinds = [m.name for m in METRICS.values() if m.per_encoder]
        similarity = [
            {"encoder": e["name"]} | {kind: _mean(own, kind, e["name"], prompt) for kind in kinds}
            for e in record.get("judge", [])
        ]
        yield (
            record
            | means
            | {
                "prompt": prompt,
                "pictures": len(pictures),
                "similarity": similarity,
                "picture_scores": json.dumps(pictures),
                "photo_scores": json.dumps(record.get("protected", [])),
            }
        )


def _mean(own: Group, metric: str, encoder: str, prompt: str) -> float | None:
    if not own.done:
        return None
    found = own.estimate(metric, encoder, prompt)
    return None if found is None else found.value


def shown_lines(text: str) -> str:
    """Return text whose lines hold nothing that does not print."""
    return "\n".join(shown(line) for line in text.splitlines()) + "\n"


def _measured(metric: Metric, records: Sequence[Row]) -> bool:
    """Whether a row holds what its network gave: it is None in every row where the network is missing."""
    kept = (part for r in records for rows in r.get("images", {}).values() for part in rows)
    stored = (row.get("quality", {}) for r in records for row in r.get("protected", []))
    return any(part.get(metric.entry) is not None for part in (kept if metric.of == "generated" else stored))


def _about(config: EvaluateConfig, plan: EvaluationPlan, records: Sequence[Row]) -> list[str]:
    missing = [_NO_INCEPTION] if config.features is None else []
    missing += sorted(f"{m.heading} ({m.needs})" for m in METRICS.values() if m.needs and not _measured(m, records))
    kinds = {r["reference_set"] for r in records if "reference_set" in r}
    return [
        f"{len(plan.identities)} people, {len(records)} of {len(plan.rows)} rows done or failed"
        + (f"; {len(plan.left_out)} people are left out, since not every run protects them" if plan.left_out else ""),
        f"attacks: {', '.join(config.attacks)}; seeds {', '.join(map(str, config.seeds))}; {config.count} images a "
        f"prompt; base model {', '.join(config.bases)}; at most {config.photos} photos of a person",
        f"judge: {', '.join(config.judges)}; similarity to: {', '.join(sorted(kinds)) or '-'}",
        *([f"not measured: {'; '.join(missing)}"] if missing else []),
    ]
