"""Index files, and what is found and refused in them."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dladiff.errors import ConfigError
from pipeline.sources.index_file import REFUSED, index_identities
from pipeline.storage.open import open_storage

Rows = list[tuple[str, str, str]]


def write(path: Path, rows: Rows, *, role: bool = True) -> str:
    """Write an index with the extension of `path`; return its address."""
    names = ["identity", "uri", "role"][: 3 if role else 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        columns = {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}
        pq.write_table(pa.table(columns | {"age": pa.array([1] * len(rows))}), path)
    else:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([["age", *names], *(["1", *row[: len(names)]] for row in rows)])
        path.write_text(text.getvalue(), encoding="utf-8-sig", newline="")
    return str(path)


def photo_files(folder: Path, keys: str) -> None:
    storage = open_storage(folder, create=True)
    for key in keys.split():
        storage.put(key, b"1234")


def found(uri: str) -> dict[str, list[str]]:
    return {i.name: [p.uri for p in i.photos] for i in index_identities(uri)}


def refused(uri: str, *roots: str) -> dict[str, str]:
    """Return why photos are refused, by URI."""
    photos = [p for i in index_identities(uri, roots) for p in (*i.photos, *i.clean)]
    return {p.uri: p.tag.removeprefix(REFUSED) for p in photos if p.tag.startswith(REFUSED)}


def faults(uri: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        list(index_identities(uri))
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults
