"""The outputs of an evaluation: results.parquet, tables.md, tables.html and contact sheets, from the stored rows."""

import io
import json
import logging
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from dladiff.evaluation.tables import Evaluation, Table, markdown
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.page import render, write_sheets
from pipeline.evaluate.pair_answers import pair_table
from pipeline.evaluate.plan import EvaluationPlan, Row
from pipeline.evaluate.ratings import Rating, opinions, read_ratings
from pipeline.evaluate.thresholds import thresholds_of
from pipeline.records.checked import fits
from pipeline.records.commit import load, load_many
from pipeline.records.manifest import write_rows
from pipeline.records.schema import RESULTS
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

HEAD = (
    "Figures are means over images with a 95 % interval of a bootstrap over people (2,000 draws, for FID 200, seeded; "
    "with fewer than six people at most their range). All rows of a table are means over the same people and seeds: "
    "those of whom every method has measurements. `lost`: failed rows / rows in which the attacker had no photo with "
    "a face / photos in which it found none. ISM all counts a "
    "picture without a face as 0, ISM detected leaves it out; a star marks an encoder that the protection optimised "
    "against. Columns named `paper` are the DLADiff paper's numbers for its own models and photos, not results of "
    "this evaluation. Names here and in the paper: "
    + ", ".join(f"{ours} {theirs}" for ours, theirs in NAMES.items())
    + "."
)

_NO_INCEPTION = "FID by Inception (no --features; the FID column uses a bundled encoder's features)"
ABOUT = {"key", "identity", "condition", "attack", "base", "preprocessing", "share", "seed"}
ENCODER = ("name", "sha256")
MAX_FEATURE_BYTES = 2**29
"""Largest file of one attack's features; 16 pictures of two prompts take less than 1 MB."""
ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError)
"""Errors of a damaged archive."""
log = logging.getLogger(__name__)
STATUSES = ("done", "no_photo", "failed")


def collect(results: Storage, plan: EvaluationPlan) -> list[Row]:
    """Return the stored records of the plan's rows: for each row that of `rows/`, else that of `failed/`."""
    done = {entry.key for entry in results.list("rows/")}
    failed = {entry.key for entry in results.list("failed/")}
    keys = []
    for row in plan.rows:
        storage_keys = (f"rows/{row['key']}.json", f"failed/{row['key']}.json")
        keys += [
            storage_key for storage_key, known in zip(storage_keys, (done, failed), strict=True) if storage_key in known
        ][:1]
    return [record for _, record in sound_rows(results, keys)]


def sound_rows(results: Storage, storage_keys: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """Yield (storage key, record) of each valid record; damaged ones are left out with a warning."""
    return load_many(results, storage_keys, _load)


def _load(results: Storage, storage_key: str) -> Row:
    """Read and check the record of one attack. Raises DamagedError, StorageError."""
    record = load(results, storage_key)
    if "judge" in record:  # the name of `evaluator` in records of earlier versions
        record = {("evaluator" if name == "judge" else name): value for name, value in record.items()}
    if fault := _record_fault(storage_key, record):
        where = results.uri_of(storage_key)
        raise DamagedError(f"{where} is no record of an evaluation ({fault}): delete it, and it is measured again")
    return record


def _record_fault(storage_key: str, record: Row) -> str:
    """Return what is wrong with a record, or "" if all columns can be made from it with their types."""
    absent = any(record.get(name) is None for name in ABOUT) or record.get("dropped", 0) is None
    if record.get("status") not in STATUSES or absent:
        return "it has no known status, or a field of its identity is missing"
    key = record["key"]
    if storage_key.partition("/")[2] != f"{key}.json" or record.get("features") not in (None, f"features/{key}.npz"):
        return "it belongs to another row than its name says"
    kinds = {"images": dict, "faces": dict, "protected": list, "prompts": list, "evaluator": list}
    measured = record["status"] != "failed"
    if any(not isinstance(record.get(name), kind) and (measured or name in record) for name, kind in kinds.items()):
        return "a part of it is missing"
    try:
        faces = [face for prompt in record.get("prompts", []) for face in record["faces"].get(prompt, [])]
        if not all(face.startswith(f"faces/{key}/") for own in record.get("faces", {}).values() for face in own):
            return "a face belongs to another row"
        named = [
            *faces,
            *record.get("prompts", []),
            *(e[name] for e in record.get("evaluator", []) for name in ENCODER),
        ]
        flags = [float(p["nsfw"] or 0) for pictures in record.get("images", {}).values() for p in pictures]
        rows = list(flat_rows(record))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return "its measurements have wrong types"
    named += [record.get(name, "") for name in ("feature_network", "reference_set")]
    good = all(isinstance(name, str) for name in named) and all(map(math.isfinite, flags))
    fits_all = all(fits(row.get(field.name), field.type) for row in rows for field in RESULTS)
    return "" if good and fits_all else "its measurements have wrong types"


def write_results(results: Storage, config: EvaluateConfig, plan: EvaluationPlan) -> list[Row]:
    """Write results.parquet, tables.md, tables.html and sheets/; return the records that they are made from."""
    records = collect(results, plan)
    gathered = evaluation(results, config, plan, records)
    rows = (row for r in records for row in flat_rows(r, gathered.thresholds))
    write_rows(results, "results.parquet", rows, RESULTS)
    tables = [*all_tables(gathered), *_pairs(results, faces_in(records))]
    about = [*_about(config, plan, records), *thresholds_of(config, _encoders(records))[1]]
    text = f"# Evaluation\n\n{HEAD}\n\n" + "\n".join(f"- {line}" for line in about) + f"\n\n{markdown(tables)}"
    results.put("tables.md", shown_lines(text).encode(), "text/markdown; charset=utf-8")
    sheets = write_sheets(results, gathered)
    results.put(
        "tables.html", render(tables, HEAD.replace("`", ""), about, sheets).encode(), "text/html; charset=utf-8"
    )
    return records


def evaluation(results: Storage, config: EvaluateConfig, plan: EvaluationPlan, records: Sequence[Row]) -> Evaluation:
    """Return the data of the tables. Features are read on demand."""

    widths: set[int] = set()  # number of features of the first file; files with another number are ignored

    @lru_cache(maxsize=64)
    def read(storage_key: str) -> list[NDArray[np.float32]]:
        parts = _features(results, storage_key)
        widths.update([] if widths else [part.shape[1] for part in parts[:1]])
        return parts if {part.shape[1] for part in parts} <= widths else []

    def features(record: Any, prompt: str) -> NDArray[np.float32] | None:
        if not record.get("features"):
            return None
        if prompt and prompt not in record["prompts"]:
            return None
        parts, index = read(record["features"]), record["prompts"].index(prompt) if prompt else 0
        return parts[index] if index < len(parts) else None

    encoders = _encoders(records)
    faces = faces_in(records)
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
        encoders=tuple(e["name"] for e in encoders),
        optimised=frozenset(e["name"] for e in encoders if {e["name"], e["sha256"]} & plan.optimised),
        opinions=opinions(r for r in _ratings(results) if r["face"] in faces),
        rescores=tuple(name.partition("=")[0] for name in config.rescores),
        thresholds=thresholds_of(config, encoders)[0],
    )


def faces_in(records: Sequence[Row]) -> set[str]:
    """Return the storage keys of the records' faces."""
    return {face for r in records for own in r.get("faces", {}).values() for face in own}


def _pairs(results: Storage, faces: set[str]) -> list[Table]:
    """Return the table of pairs; [] with a warning if the file is damaged."""
    try:
        return pair_table(results, faces)
    except DamagedError as error:
        log.warning("%s", shown(str(error)))
        return []


def _encoders(records: Sequence[Row]) -> list[dict[str, str]]:
    """Return the names and digests of the evaluator's encoders."""
    return next((r["evaluator"] for r in records if "evaluator" in r), [])


def _features(results: Storage, storage_key: str) -> list[NDArray[np.float32]]:
    """Return the features of one attack, an array per prompt, or [] if the file is missing or damaged."""
    try:
        with np.load(io.BytesIO(results.get(storage_key, MAX_FEATURE_BYTES)), allow_pickle=False) as stored:
            if sum(info.file_size for info in stored.zip.infolist()) > MAX_FEATURE_BYTES:
                return []
            parts = [stored[f"arr_{i}"] for i in range(len(stored.files))]
    except (NotFoundError, TooLargeError, ValueError, KeyError, OSError, EOFError, MemoryError, TypeError, *ZIP):
        return []
    good = all(p.ndim == 2 and p.size and p.dtype.kind == "f" and np.isfinite(p).all() for p in parts)
    return parts if good else []


def _ratings(results: Storage) -> list[Rating]:
    """Return the ratings; [] with a warning if the file is damaged."""
    try:
        return read_ratings(results)
    except DamagedError as error:
        log.warning("%s", shown(str(error)))
        return []


def flat_rows(record: Row, thresholds: Mapping[str, float] | None = None) -> Iterable[Row]:
    """Yield rows of RESULTS: one per prompt, or one for a record without generated pictures.

    `thresholds`: encoder to the smallest cosine that verifies.
    """
    images, own = record.get("images") or {"": []}, Group((record,), thresholds=thresholds or {})
    for prompt, pictures in images.items():
        means = {m.name: _mean(own, m.name, "", prompt) for m in METRICS.values() if not m.per_encoder}
        kinds = [m.name for m in METRICS.values() if m.per_encoder]
        similarity = [
            {"encoder": e["name"]} | {kind: _mean(own, kind, e["name"], prompt) for kind in kinds}
            for e in record.get("evaluator", [])
        ]
        names = dict.fromkeys(name for picture in pictures for name in picture.get("rescored", {}))
        rescored = [
            {"preprocessing": name, "encoder": e["name"]}
            | {m.name: _mean(own, m.name, e["name"], prompt, name) for m in METRICS.values() if m.rescored}
            for name in names
            for e in record.get("evaluator", [])
        ]
        yield (
            record
            | means
            | {
                "prompt": prompt,
                "pictures": len(pictures),
                "similarity": similarity,
                "rescored": rescored,
                "picture_scores": json.dumps(pictures),
                "photo_scores": json.dumps(record.get("protected", [])),
            }
        )


def _mean(own: Group, metric: str, encoder: str, prompt: str, rescore: str = "") -> float | None:
    if not own.done:
        return None
    estimate = own.estimate(metric, encoder, prompt, rescore)
    return None if estimate is None else estimate.value


def shown_lines(text: str) -> str:
    """Return the text with non-printing characters of each line replaced."""
    return "\n".join(shown(line) for line in text.splitlines()) + "\n"


def _measured(metric: Metric, records: Sequence[Row]) -> bool:
    """Return whether any row has a value of this metric; none has if its network is missing."""
    generated = (part for r in records for rows in r.get("images", {}).values() for part in rows)
    stored = (row.get("quality", {}) for r in records for row in r.get("protected", []))
    return any(part.get(metric.entry) is not None for part in (generated if metric.of == "generated" else stored))


def _about(config: EvaluateConfig, plan: EvaluationPlan, records: Sequence[Row]) -> list[str]:
    missing = [_NO_INCEPTION] if config.features is None else []
    missing += sorted(f"{m.heading} ({m.needs})" for m in METRICS.values() if m.needs and not _measured(m, records))
    kinds = {r["reference_set"] for r in records if "reference_set" in r}
    return [
        f"{len(plan.identities)} people, {len(records)} of {len(plan.rows)} rows done or failed"
        + (
            f"; {len(plan.left_out)} people are left out because some run does not protect them"
            if plan.left_out
            else ""
        ),
        f"attacks: {', '.join(config.attacks)}; seeds {', '.join(map(str, config.seeds))}; {config.count} images per "
        f"prompt; base model {', '.join(config.bases)}; at most {config.photos} photos of a person",
        *(
            [f"second scores: each generated picture after {', after '.join(config.rescores)}"]
            if config.rescores
            else []
        ),
        f"evaluator: {', '.join(config.evaluators)}; similarity to: {', '.join(sorted(kinds)) or '-'}",
        *([f"not measured: {'; '.join(missing)}"] if missing else []),
    ]
