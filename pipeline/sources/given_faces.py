"""Column `faces` of an index file: boxes of faces that a detector may miss, read beside the index itself.

A cell is JSON: a list of boxes [x0, y0, x1, y1], or of objects with `box` and, optional, `landmarks` (five points
[x, y]: eyes, nose, mouth corners, the left one in the image first). Pixels of the upright photo.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from dladiff.errors import ConfigError, StorageError
from pipeline.sources.addresses import address_of
from pipeline.sources.find import Identity
from pipeline.storage.base import Storage
from pipeline.storage.keys import short, shown
from pipeline.storage.open import open_storage

COLUMN = "faces"
MAX_FACES = 64  # of one photo: a group; each takes a run of layer 2
MAX_COORDINATE = 10**6  # largest coordinate, px: wider than any photo that is read
SHOWN_FAULTS = 5  # faults that are listed; the others are counted
MAX_LINE = 2**24  # characters of a line of the index, as in index_formats
POINTS = 5  # landmarks of a face


def with_faces(found: Iterator[Identity], uri: str) -> Iterator[Identity]:
    """Yield the identities of an index file, with the faces that its column gives. Raises ConfigError for bad cells."""
    given = _read(uri)
    if not given:
        yield from found
        return
    for identity in found:
        photos = (replace(p, faces=given[p.uri]) if p.uri in given else p for p in identity.photos)
        yield replace(identity, photos=tuple(photos))


def parsed_faces(cell: Any) -> list[dict[str, Any]]:
    """Return the faces of a cell as objects with `box` and `landmarks` (None: not given). Raises ValueError."""
    try:
        faces = json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(faces, list):
        raise ValueError("is no list")
    if len(faces) > MAX_FACES:
        raise ValueError(f"has {len(faces)} faces, at most {MAX_FACES} are read")
    return [_face(face) for face in faces]


def _face(face: Any) -> dict[str, Any]:
    given = face if isinstance(face, dict) else {"box": face}
    if unknown := given.keys() - {"box", "landmarks", "score"}:
        raise ValueError(f"has a face with {short(str(min(unknown)), 40)!r}; known are box and landmarks")
    box: Any = given.get("box")
    landmarks = given.get("landmarks")
    if not _numbers(box, 4) or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"has the box {short(str(box), 60)}; expected [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
    if landmarks is not None:
        whole = isinstance(landmarks, list) and len(landmarks) == POINTS and all(_numbers(p, 2) for p in landmarks)
        if not whole or len({tuple(p) for p in landmarks}) < POINTS:
            raise ValueError(f"has the landmarks {short(str(landmarks), 60)}; expected five different points [x, y]")
    return {"box": box, "landmarks": landmarks}


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(v) in (int, float) and math.isfinite(v) and abs(v) <= MAX_COORDINATE for v in values)
    )


def _read(uri: str) -> dict[str, str]:
    """Return the faces of each photo as JSON, by address; only of photos with any, so that memory stays small."""
    name = uri.rpartition("/")[2]
    storage = open_storage(uri.removesuffix(name) or ".")
    name = unquote(name) if uri.startswith("file://") else name
    found: dict[str, str] = {}
    faults: list[str] = []
    try:
        with _opened(storage, name) as handle:
            for number, photo, cell in _cells(handle, name.lower()):
                try:
                    faces = parsed_faces(cell)
                except ValueError as error:
                    faults.append(f"{shown(storage.uri_of(name))}, row {number}: {COLUMN} {error}")
                    continue
                if faces:
                    found[address_of(photo, storage.uri)[0]] = json.dumps(faces)
    except (csv.Error, ValueError, OSError, StorageError):  # the reader of the index itself says what is wrong
        return {}
    if faults:
        more = [f"{len(faults) - SHOWN_FAULTS} more faults"] if len(faults) > SHOWN_FAULTS else []
        raise ConfigError(faults[:SHOWN_FAULTS] + more)
    return found


def _opened(storage: Storage, name: str) -> BinaryIO:
    """Open the index: a local file is streamed, an S3 object is read into memory."""
    return io.BytesIO(storage.get(name)) if storage.uri.startswith("s3://") else Path(storage.uri_of(name)).open("rb")


def _cells(handle: BinaryIO, name: str) -> Iterator[tuple[int, str, Any]]:
    """Yield row number, photo and cell of each row with a cell."""
    if name.endswith(".parquet"):
        yield from _of_parquet(handle)
        return
    rows: Iterator[Any]
    if name.endswith(".csv"):
        csv.field_size_limit(MAX_LINE)
        reader = csv.DictReader(_lines(handle), strict=True)
        reader.fieldnames = [field.strip() for field in reader.fieldnames or ()]
        rows = iter(reader) if COLUMN in reader.fieldnames else iter(())
        first = 2  # the header is row 1
    else:
        rows, first = (json.loads(line) for line in _lines(handle) if line.strip()), 1
    for number, row in enumerate(rows, first):
        cell = row.get(COLUMN) if isinstance(row, dict) else None
        if cell is not None and cell != "":
            yield number, str(row.get("uri", "")), cell


def _lines(handle: BinaryIO) -> Iterator[str]:
    """Yield the lines of a text. Raises ValueError for a line of more than MAX_LINE characters, perhaps endless."""
    with io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as text:
        while line := text.readline(MAX_LINE):
            if len(line) == MAX_LINE:
                raise ValueError("a line is too long")
            yield line


def _of_parquet(handle: BinaryIO) -> Iterator[tuple[int, str, Any]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(handle)
    if not {COLUMN, "uri"} <= set(file.schema_arrow.names):
        return
    number = 0
    for batch in file.iter_batches(columns=["uri", COLUMN]):
        for row in batch.to_pylist():
            number += 1
            if row[COLUMN] is not None and row[COLUMN] != "":
                yield number, str(row["uri"]), row[COLUMN]
