"""The manifest from records alone: parts merged, nothing read when nothing changed, orphans swept."""

import io
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.records import commit as records
from pipeline.records import loading, manifest
from pipeline.records.schema import parquet
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"), create=True)


def record(key: str, *uris: str, part: int = 0, parts: int = 1, lost: int = 0) -> records.Record:
    photos = [
        {
            "identity": "a/b",
            "source_uri": uri,
            "run_id": key,
            "linf": 0.01,
            "status": "failed" if i < lost else "protected",
        }
        for i, uri in enumerate(uris)
    ]
    row = {"identity": "a/b", "run_id": key, "status": "done", "photos": len(uris), "failed_photos": lost}
    row |= {"started_at": records.now(), "finished_at": records.now(), "seconds": {"read": 0.5}, "device": "cpu"}
    return {"identity": "a/b", "part": part, "parts": parts, "key": key, "photos": photos, "identity_row": row}


def rows(storage: Storage, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(io.BytesIO(storage.get(f"manifest/{name}.parquet"))).to_pylist()
    return found


def test_round_trip_and_failures_stand_for_newer_work(storage: Storage) -> None:
    records.commit(storage, record("k", "u"))
    assert manifest.write_manifest(storage) == (1, 1)
    (row,) = rows(storage, "photos")
    assert (row["identity"], row["linf"]) == ("a/b", 0.01)
    (about,) = rows(storage, "identities")
    assert (about["seconds"], about["parts"]) == ([("read", 0.5)], 1)
    assert about["started_at"].utcoffset().total_seconds() == 0
    failed = record("new", "u") | {"status": "failed", "reason": "x"}
    failed["identity_row"] |= {"status": "failed"}
    for attempts in (1, 2):
        records.fail(storage, failed)
        assert records.read_index(storage).failed["a/b", 0].attempts == attempts
    assert manifest.write_manifest(storage) == (1, 1)
    assert rows(storage, "identities")[0]["status"] == "failed"


def test_an_unchanged_output_is_neither_read_nor_written(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    records.commit(storage, record("k", "u"))
    manifest.write_manifest(storage)
    before = [(e.key, e.tag) for e in storage.list("manifest/")]
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("a record was read"))
    assert records.read_index(storage).fresh
    assert manifest.write_manifest(storage) == (1, 1)
    assert [(e.key, e.tag) for e in storage.list("manifest/")] == before


@pytest.mark.parametrize("damage", [None, b"", b"PAR1 no"])
def test_manifests_are_rebuilt_from_the_records_alone(storage: Storage, damage: bytes | None) -> None:
    records.commit(storage, record("k", "u", "v"))
    manifest.write_manifest(storage)
    before = {name: rows(storage, name) for name in ("photos", "identities", "records")}
    for entry in list(storage.list("manifest/")):
        storage.delete(entry.key) if damage is None else storage.put(entry.key, damage)
    assert manifest.write_manifest(storage) == (2, 1)
    assert {name: rows(storage, name) for name in before} == before


def test_parts_are_merged_and_count_as_one_identity(storage: Storage) -> None:
    records.commit(storage, record("k1", "u1", "u2", part=1, parts=3))
    records.commit(storage, record("k2", "u3", "u4", part=2, parts=3, lost=1))
    assert manifest.write_manifest(storage) == (4, 1)
    assert rows(storage, "identities")[0]["status"] == "partial"
    failed = record("k3", "u5", part=3, parts=3) | {"status": "failed", "reason": "why"}
    records.fail(storage, failed)
    assert manifest.write_manifest(storage) == (5, 1)
    (row,) = rows(storage, "identities")
    assert (row["status"], row["reason"], row["attempts"], row["photos"]) == ("failed", "why", 1, 5)
    records.clear_failure(storage, "a/b", 3)
    records.commit(storage, record("k3", "u5", part=3, parts=3))
    assert manifest.write_manifest(storage) == (5, 1)
    (row,) = rows(storage, "identities")
    assert (row["status"], row["parts"], row["failed_photos"], row["seconds"]) == ("done", 3, 1, [("read", 1.5)])
    assert [p["source_uri"] for p in rows(storage, "photos")] == ["u1", "u2", "u3", "u4", "u5"]


def test_a_photo_in_an_old_and_a_new_split_has_one_row(storage: Storage) -> None:
    records.commit(storage, record("old", "u1", "u2"))
    records.commit(storage, record("k1", "u1", part=1, parts=2))
    assert manifest.write_manifest(storage) == (2, 1)
    assert {p["source_uri"]: p["run_id"] for p in rows(storage, "photos")} == {"u1": "k1", "u2": "old"}


def test_sweep_keeps_what_records_name(storage: Storage) -> None:
    kept = record("k", "u")
    kept["photos"][0]["output_key"] = "photos/a%2Fb/u.111111111111.png"
    records.commit(storage, kept)
    stale = record("old", "u", part=1, parts=2)
    records.commit(storage, stale)
    ours = ["photos/a%2Fb/u.111111111111.png", "photos/a%2Fb/u.222222222222.png", "photos/a%2Fbc/u.111111111111.png"]
    for name in (*ours, "photos/a%2Fb/holiday.png"):
        storage.put(name, b"x")
    index = records.read_index(storage)
    removed = manifest.sweep(storage, "a/b", [index.done["a/b", 0]], [index.done["a/b", 1]])
    assert removed == ["done/a%2Fb~0001.json", "photos/a%2Fb/u.222222222222.png"]
    left = sorted(e.key for e in storage.list() if not e.key.startswith(("manifest/", "settings/")))
    assert left == ["done/a%2Fb.json", "photos/a%2Fb/holiday.png", ours[0], ours[2]]  # what is not ours is not swept


def test_arrow_holds_nothing_of_python_s(storage: Storage) -> None:
    """Its threads may outlive the interpreter, and to let go of Python's bytes there ends the process with 134."""
    records.commit(storage, record("k", "in/1.png"))
    manifest.write_manifest(storage)
    data = storage.get(manifest.PHOTOS_KEY)
    held = sys.getrefcount(data)
    with parquet(data) as file:
        assert file.read().num_rows == 1 and sys.getrefcount(data) == held
