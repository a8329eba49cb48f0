"""The stored form of records: nothing is lost, settings stand once, records of earlier versions are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from dladiff.errors import DamagedError
from pipeline.records import commit as records
from pipeline.records.loading import load_record
from pipeline.records.packed import FOLDER, pack, unpack
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.bench.finalise import Writer


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"), create=True)


@pytest.fixture
def written(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two records as the actor makes them, with a failed photo in the second."""
    made: list[dict[str, Any]] = []
    commit = records.commit

    def noted(storage: Storage, record: dict[str, Any]) -> bool:
        made.append(json.loads(json.dumps(record)))
        return commit(storage, record)

    monkeypatch.setattr(records, "commit", noted)
    for number in (0, 1):
        Writer(storage, 64, "run").write(number)
    return made


def place(record: dict[str, Any]) -> str:
    return f"done/{record['identity']}.json"


def test_a_record_is_read_as_it_was_made(storage: Storage, written: list[dict[str, Any]]) -> None:
    for record in written:
        assert load_record(open_storage(storage.uri), place(record)) == record
    assert len(list(storage.list(FOLDER))) == 2  # of photos, and of identities, which have no layers


def test_a_photo_takes_no_more_than_1200_bytes(storage: Storage, written: list[dict[str, Any]]) -> None:
    (size, *_) = (entry.size for entry in storage.list("done/") if entry.key == place(written[0]))
    assert size / 64 <= 1200
    assert len(json.dumps(written[0], indent=1)) / 64 > 3000  # the stored form of earlier versions


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"source_uri": "u", "status": "failed"}],
        [{"source_uri": "u", "status": "skipped", "seed": 1}, {"source_uri": "v", "status": "failed", "seed": 2}],
        [{"source_uri": "u", "status": "protected", "output_key": "photos/a/u.png", "output_uri": "/o/photos/a/u.png"}],
        [{"source_uri": "u", "status": "protected", "output_key": "photos/a/u.png", "output_uri": "elsewhere"}],
        [{"source_uri": "u", "status": "protected", "output_key": "photos/a/u.png"}],
        [{"source_uri": "u", "status": "failed", "run_id": "r"}, {"source_uri": "v", "status": "failed"}],
    ],
)
def test_unpack_is_the_inverse_of_pack(storage: Storage, rows: list[dict[str, Any]]) -> None:
    for about in ({}, {"status": "done", "run_id": "r"}, {"status": "done", "device": "cpu"}):
        record = {"identity": "a", "key": "k", "photos": rows, "identity_row": about}
        assert unpack(storage, json.loads(json.dumps(pack(storage, record)))) == record


def test_a_record_of_an_earlier_version_is_read_and_counts(storage: Storage, written: list[dict[str, Any]]) -> None:
    """Earlier versions stored complete rows, indented."""
    old = written[0]
    storage.put(place(old), json.dumps(old, indent=1).encode())
    assert load_record(storage, place(old)) == old
    index = records.read_index(storage)
    assert index.damaged == {} and index.done[old["identity"], 0].accounts_for(64)


@pytest.mark.parametrize("damage", [None, b"{}", b"[", b'{"seed": "x"}'])
def test_settings_that_are_missing_or_changed_make_their_records_damaged(
    storage: Storage, written: list[dict[str, Any]], damage: bytes | None
) -> None:
    for entry in list(storage.list(FOLDER)):
        storage.delete(entry.key) if damage is None else storage.put(entry.key, damage)
    with pytest.raises(DamagedError, match=r"its settings, .*, are missing or were changed; delete it and run again"):
        load_record(open_storage(storage.uri), place(written[0]))
    again = open_storage(storage.uri)  # as another process, which does not know what is stored
    records.commit(again, written[0])
    assert load_record(open_storage(storage.uri), place(written[0])) == written[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("settings", {}),
        ("settings", ["../../x"]),
        ("settings", []),
        ("common", {"seconds": "x"}),
        ("common", 3),
        ("output", 3),
    ],
)
def test_forged_shared_values_are_refused(
    storage: Storage, written: list[dict[str, Any]], field: str, value: object
) -> None:
    key = place(written[0])
    storage.put(key, json.dumps(json.loads(storage.get(key)) | {field: value}).encode())
    with pytest.raises(DamagedError, match="is no record"):
        load_record(storage, key)
