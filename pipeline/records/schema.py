"""Column names, types and units of manifests, plans, the index and evaluation results; and their Parquet files."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dladiff.evaluation.metrics import METRICS

PhotoRow = dict[str, Any]
"""A row of PHOTOS: column name to JSON value."""
IdentityRow = dict[str, Any]
"""A row of IDENTITIES: column name to JSON value."""
LATER = b"later"
"""Key in the metadata of columns that files of earlier versions do not have."""
TIME = pa.timestamp("us", tz="UTC")
FACE = pa.struct(
    [
        ("box", pa.list_(pa.float64())),
        ("landmarks", pa.list_(pa.list_(pa.float64()))),
        ("score", pa.float64()),
    ]
)
SIMILARITY = pa.struct(
    [("encoder", pa.string()), ("optimised", pa.bool_()), ("before", pa.float64()), ("after", pa.float64())]
)
GEOMETRY = pa.struct([("largest", pa.float64()), ("box", pa.list_(pa.int32()))])
ATTACKED = pa.struct(
    [
        ("encoder", pa.string()),
        *((metric.name, pa.float64()) for metric in METRICS.values() if metric.per_encoder),
    ]
)
RESCORED = pa.struct(
    [
        ("preprocessing", pa.string()),
        ("encoder", pa.string()),
        *((metric.name, pa.float64()) for metric in METRICS.values() if metric.rescored),
    ]
)
MODEL = pa.struct([(name, pa.string()) for name in ("name", "role", "sha256", "licence", "source", "revision")])


def _column(name: str, kind: pa.DataType, about: str, *, later: bool = False) -> pa.Field:
    """Return a column. `later`: files of earlier versions do not have it; its values are then null."""
    metadata: dict[bytes, str] = {b"about": about}
    return pa.field(name, kind, metadata=metadata | ({LATER: "true"} if later else {}))


def _metric_columns() -> Iterator[pa.Field]:
    """Yield a column a metric (`dladiff/evaluation/metrics`), and one of those that have a value for each encoder."""
    similarity = _column("similarity", pa.list_(ATTACKED), "mean cosines, by encoder of the evaluator")
    for together, metrics in groupby(METRICS.values(), key=lambda metric: metric.per_encoder):
        yield from [similarity] if together else [_column(m.name, pa.float64(), m.about) for m in metrics]


_RUN = [
    _column("run_id", pa.string(), "the run that wrote the row"),
    _column("identity", pa.string(), "name of the identity, unescaped"),
]
_HOW = [
    _column("seed", pa.int64(), "seed of the run"),
    _column(
        "config_digest",
        pa.string(),
        "digest of every setting that decides the output bytes, except how photos share tasks (parts)",
    ),
    _column("models", pa.list_(MODEL), "the networks used"),
    _column("versions", pa.map_(pa.string(), pa.string()), "package versions"),
    _column("device", pa.string(), "cpu, or the name of the GPU"),
    _column("seconds", pa.map_(pa.string(), pa.float64()), "seconds of each step of the identity"),
    _column("peak_memory_bytes", pa.int64(), "bytes; device memory on a GPU, else resident memory"),
    _column("started_at", TIME, "UTC"),
    _column("finished_at", TIME, "UTC"),
]
PHOTOS = pa.schema(
    [
        *_RUN,
        _column("source_uri", pa.string(), "the photo as it was read"),
        _column("source_sha256", pa.string(), "of the file's bytes"),
        _column("output_uri", pa.string(), "the protected photo"),
        _column("output_key", pa.string(), "the same, relative to the output"),
        _column("output_sha256", pa.string(), "of the file's bytes"),
        _column("width", pa.int32(), "px"),
        _column("height", pa.int32(), "px"),
        _column("status", pa.string(), "protected | layer1_only | failed | skipped"),
        _column("reason", pa.string(), "why it is not protected; a note otherwise"),
        _column("faces", pa.list_(FACE), "px: box x0 y0 x1 y1, five landmarks x y, score"),
        _column("linf", pa.float64(), "largest change of a channel, [0, 1] units"),
        _column("linf_face", pa.float64(), "the same inside the face boxes, [0, 1] units"),
        _column("psnr", pa.float64(), "dB; null when nothing changed"),
        _column("psnr_face", pa.float64(), "dB inside the face boxes; null when nothing changed"),
        _column("ssim", pa.float64(), "1"),
        _column(
            "ssimulacra2",
            pa.float64(),
            "how little the change is seen, at the size of a screen (longer side scaled down to 1,080 px): 100 "
            "identical, 90 not distinguishable side by side, 70 high quality, 50 medium, 30 low, no lower limit; null "
            "in photos of earlier versions",
            later=True,
        ),
        _column(
            "ssimulacra2_face",
            pa.float64(),
            "the same of the square around a face (1.25 times the longer side of its box; scaled down likewise, "
            "below 256 px enlarged to them), the lowest of the faces; null without a face",
            later=True,
        ),
        _column("similarity", pa.list_(SIMILARITY), "cosine to the original photo, by encoder"),
        _column("retained", pa.float64(), "smallest share of layer 1 left in any of the stored photo's views"),
        _column("finetuning_layer", pa.string(), "JSON: settings of layer 1; null when it did not run"),
        _column("zero_shot_layer", pa.string(), "JSON: settings of layer 2; null when it did not run"),
        _column(
            "joint_layers",
            pa.string(),
            "JSON: settings of both layers under one visibility budget; null without one",
            later=True,
        ),
        _column(
            "geometry",
            GEOMETRY,
            "the displacement of a face (experimental): largest, per cent of the distance between the eyes; box, px: "
            "inside, bounds hold against the displaced photo, which is not stored; null without one",
            later=True,
        ),
        *_HOW,
    ]
)
IDENTITIES = pa.schema(
    [
        *_RUN,
        _column("status", pa.string(), "done | failed | quarantined | partial (some of its parts are not done yet)"),
        _column("reason", pa.string(), "why it failed"),
        _column("parts", pa.int32(), "tasks the identity was split into"),
        _column("photos", pa.int32(), "photos"),
        _column("failed_photos", pa.int32(), "photos without a protected file"),
        _column("attempts", pa.int32(), "attempts so far that ended in failure"),
        *_HOW,
    ]
)
PLAN = pa.schema(
    [
        _column("identity", pa.string(), "name of the identity, unescaped"),
        _column("part", pa.int32(), "0, or the number of the part, from 1"),
        _column("key", pa.string(), "digest of identity, content tags and settings"),
        _column("uris", pa.list_(pa.string()), "the photos to protect"),
        _column("plan_hash", pa.string(), "digest of the whole listing"),
    ]
)
TODO = pa.schema([_column("work", pa.string(), "JSON: the actor's work")])
RECORDS = pa.schema(
    [
        _column("place", pa.string(), "storage key of the record"),
        _column("tag", pa.string(), "storage tag of the record that the row was read from"),
        _column("identity", pa.string(), "name of the identity, unescaped"),
        _column("part", pa.int32(), "0, or the number of the part, from 1"),
        _column("parts", pa.int32(), "tasks the identity was split into"),
        _column("key", pa.string(), "digest of identity, content tags and settings"),
        _column("status", pa.string(), "done | failed | quarantined"),
        _column("reason", pa.string(), "why it failed"),
        _column("photos", pa.int32(), "photos of the task"),
        _column("failed_photos", pa.int32(), "photos without a protected file"),
        _column("incomplete", pa.int32(), "photos that are neither stored nor failed nor deleted"),
        _column("photo_reasons", pa.list_(pa.string()), "why, one line each"),
        _column("attempts", pa.int32(), "attempts that ended in failure"),
        _column("started_at", pa.string(), "ISO 8601"),
        _column("finished_at", pa.string(), "ISO 8601"),
        _column("seconds", pa.float64(), "of the actor's work"),
        _column("device", pa.string(), "cpu, or the name of the GPU"),
        _column(
            "ssimulacra2", pa.float64(), "lowest SSIMULACRA2 of its photos; null where none is measured", later=True
        ),
    ]
)
RESULTS = pa.schema(
    [
        _column("key", pa.string(), "digest of what was attacked and how"),
        _column("identity", pa.string(), "name of the identity, unescaped"),
        _column("condition", pa.string(), "method, or clean, or noise"),
        _column("attack", pa.string(), "attacker"),
        _column("base", pa.string(), "base model of the attacker"),
        _column("preprocessing", pa.string(), "preprocessing of the photos by the attacker"),
        _column("share", pa.int32(), "% of the photos that are protected"),
        _column("seed", pa.int64(), "seed of the attack"),
        _column("prompt", pa.string(), "of generation; empty where nothing is generated"),
        _column("status", pa.string(), "done | no_photo (the attacker found no face in any) | failed"),
        _column("reason", pa.string(), "why it failed, or which photos could not be read"),
        _column("photos", pa.int32(), "photos the attacker had"),
        _column("dropped", pa.int32(), "of these, photos in which it found no face"),
        _column("pictures", pa.int32(), "pictures generated"),
        *_metric_columns(),
        _column(
            "rescored",
            pa.list_(RESCORED),
            "means of the pictures' second scores, by preprocessing before scoring (--rescore) and encoder",
            later=True,
        ),
        _column("references", pa.int32(), "clean photos behind the reference embedding"),
        _column("reference_set", pa.string(), "other photos | originals of the protected photos"),
        _column("feature_network", pa.string(), "network of the FID features"),
        _column("picture_scores", pa.string(), "JSON: scores of each picture"),
        _column("photo_scores", pa.string(), "JSON: scores of each photo"),
        _column("seconds", pa.float64(), "of the actor's work"),
        _column("finished_at", TIME, "UTC"),
    ]
)


NO_PARQUET = (pa.ArrowException, KeyError, ValueError, TypeError, OSError, OverflowError)
"""Errors that pyarrow raises for a damaged file or for values that Python cannot hold."""


def parquet(data: bytes, schema: pa.Schema | None = None) -> pq.ParquetFile:
    """Open a Parquet file from bytes; with `schema`, its columns must have these types. Raises NO_PARQUET.

    A file of an earlier version may lack the columns marked `later`; `with_later` adds them.

    Arrow reads its own copy: if one of its threads released Python's bytes while the process ends, the process would
    abort. For the same reason `pq.read_table` is not used.
    """
    copy = pa.BufferOutputStream()
    copy.write(data)
    file = pq.ParquetFile(pa.BufferReader(copy.getvalue()))
    own = file.schema_arrow if schema else pa.schema([])  # once: each access builds it anew
    for field in schema or ():
        if LATER in field.metadata and field.name not in own.names:
            continue
        found = own.field(field.name)
        if not found.type.equals(field.type):
            raise ValueError(f"column {field.name} is {found.type}, not {field.type}")
    return file


def with_later(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows of a file opened by `parquet`, with nulls in the columns that its version did not have."""
    for field in schema:
        if LATER in field.metadata and field.name not in rows.schema.names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


def columns(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Return the schema of the named columns."""
    return pa.schema([schema.field(name) for name in names])


def table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build an Arrow table from rows of JSON values; times are ISO 8601 strings."""
    return pa.Table.from_pylist([_row(row, schema) for row in rows], schema=schema)


def _row(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    out = {}
    for field in schema:
        value = row.get(field.name)
        if value is not None and pa.types.is_timestamp(field.type):
            value = datetime.fromisoformat(value)
        elif value is not None and pa.types.is_map(field.type):
            value = list(dict(value).items())
        out[field.name] = value
    return out


def reasons(rows: Iterable[PhotoRow]) -> str:
    """Return the distinct reasons of some rows, joined by "; "."""
    return "; ".join(dict.fromkeys(row["reason"] for row in rows))


BRIEF = ("source_uri", "status", "reason", "psnr", "ssimulacra2", "ssimulacra2_face", "similarity")


def brief(row: PhotoRow) -> PhotoRow:
    """Return the columns of a photo's row that the driver shows."""
    return {name: row.get(name) for name in BRIEF}


def finite(value: float) -> float | None:
    """Return a finite number, None for NaN and infinity, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def finite_similarity(similarity: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries with None instead of NaN and infinity."""
    return [entry | {name: finite(entry[name]) for name in ("before", "after")} for entry in similarity]
