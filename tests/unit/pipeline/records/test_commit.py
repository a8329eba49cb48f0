"""Records: who wins a commit, what counts as a start, and names of parts that no identity has."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dladiff.errors import StorageError
from pipeline.records import commit as records
from pipeline.storage.base import Storage
from pipeline.storage.keys import task_name
from pipeline.storage.open import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"), create=True)


def record(key: str, run: str = "r") -> records.Record:
    return {"identity": "a/b", "key": key, "run_id": run, "photos": [], "identity_row": {}}


def test_first_commit_of_a_key_wins_and_a_new_key_replaces(storage: Storage) -> None:
    def winner() -> str:
        return str(records.load(storage, "done/a%2Fb.json")["run_id"])

    assert records.commit(storage, record("k", "one"))
    assert not records.commit(storage, record("k", "two"))
    assert winner() == "one"
    assert records.commit(storage, record("other", "three"))
    assert winner() == "three"
    tag = records.read_index(storage).done["a/b", 0].tag
    assert records.commit(storage, record("other", "four"), replaces=tag)
    assert winner() == "four"


def test_key_depends_on_name_tags_and_settings_not_on_order() -> None:
    tags = [("1.png", "x"), ("2.png", "y")]
    key = records.key_of("a", tags, "d")
    assert key == records.key_of("a", tags[::-1], "d")
    others = {records.key_of("b", tags, "d"), records.key_of("a", tags, "e"), records.key_of("a", [], "d")}
    assert len({key, *others}) == 4


def test_starts_count_by_key_and_run(storage: Storage) -> None:
    task = ("a/b", 0)
    for key, run in (("k", "r"), ("k", "r"), ("other", "r")):
        records.write_start(storage, task, key, run)
    assert records.count_starts(storage, task, "k", "r") == 2
    for _ in range(4):
        records.write_start(storage, task, "k", "a driver that died")
    assert records.count_starts(storage, task, "k", "r") == 3
    assert records.count_starts(storage, ("a/b", 1), "k", "r") == 0
    records.clear_starts(storage, "a/b")
    assert records.count_starts(storage, task, "k", "r") == 0


@given(st.text(alphabet="a~0%/.1é", max_size=8), st.text(alphabet="a~0%/.1é", max_size=8))
def test_no_identity_has_the_name_of_anothers_part(one: str, other: str) -> None:
    names = {task_name(name, part) for name in (one, other) for part in (0, 1, 12)}
    assert len(names) == 3 * len({one, other})


DONE = {"identity": "x", "part": 0, "key": "k", "photos": []}


@pytest.mark.parametrize(
    ("data", "fault"), [(b"{", "is not JSON"), (b"[]", "is no record"), (b'{"identity": "x"}', "is no record")]
)
def test_a_damaged_record_is_named_costs_only_its_own_and_is_replaced(
    storage: Storage, data: bytes, fault: str
) -> None:
    assert records.commit(storage, DONE | {"identity": "ann"})
    storage.put("done/x.json", data)
    storage.put("failed/x.json", data)
    index = records.read_index(storage)
    assert {place: fault in text for place, text in index.damaged.items()} == {
        "done/x.json": True,
        "failed/x.json": True,
    }
    assert list(index.standing()) == [("ann", 0)] and not index.fresh
    assert records.commit(storage, DONE)
    records.fail(storage, DONE | {"identity_row": {}})
    index = records.read_index(storage)
    assert list(index.done) == [("ann", 0), ("x", 0)] and list(index.failed) == [("x", 0)] and index.damaged == {}


def test_many_records_come_in_order(storage: Storage) -> None:
    keys = [f"done/{i:03d}.json" for i in range(100)]
    for key in keys:
        storage.put(key, b'{"k": "%s"}' % key.encode())
    assert [(k, r["k"]) for k, r in records.load_many(storage, keys, records.load)] == [(k, k) for k in keys]


def test_an_address_without_a_run_is_reported(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(StorageError, match=r"no run has written to .*; check the address"):
        records.open_run(str(tmp_path))
    (tmp_path / "done").mkdir()
    (tmp_path / "done/x.json").write_text("{")
    assert records.open_run(str(tmp_path)).uri == str(tmp_path)
