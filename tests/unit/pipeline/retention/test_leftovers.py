"""Whose a key is, and what dead writers leave in a folder."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dladiff.errors import StorageError
from pipeline.retention.leftovers import held, owner, sweep
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape, task_name
from pipeline.storage.open import open_storage


@given(st.text(max_size=150), st.sampled_from([0, 1, 9999]))
def test_every_key_of_a_person_is_theirs(name: str, part: int) -> None:
    task = task_name(name, part)
    for key in (f"starts/{task}/a.json", f"done/{task}.json", f"failed/{task}.json", f"traces/{task}.json"):
        assert owner(key) == escape(name)
    assert owner(f"photos/{escape(name)}/a.png") == escape(name)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("done/._bob.json", "bob"),
        ("photos/._bob", "bob"),
        ("photos/readme.txt", None),
        ("done/.DS_Store", None),
        ("done/bob/deeper.json", None),
        ("manifest/bob.json", None),
        ("bob", None),
    ],
)
def test_of_other_files(key: str, name: str | None) -> None:
    assert owner(key) == name


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "out", create=True)


def hidden(storage: Storage, place: str, age: float) -> Path:
    file = Path(storage.uri, place, ".tmp-1")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    os.utime(file, (0, time.time() - age))
    return file


def test_keys_are_kept_of_those_who_left_alone(storage: Storage) -> None:
    for key in ("photos/ann/1.png", "photos/bob/1.png", "photos/bob/2.png", "done/bob~0001.json", "starts/bob/1"):
        storage.put(key, b"12")
    found = held(storage, {"ann"})
    assert (found["ann"].photos, found["ann"].keys) == (1, [])
    assert (found["bob"].photos, found["bob"].bytes) == (2, 4)
    assert found["bob"].keys == ["photos/bob/1.png", "photos/bob/2.png", "starts/bob/1", "done/bob~0001.json"]
    assert held(storage, None)["bob"].keys == []


def test_hidden_files_and_empty_folders_below_a_prefix(storage: Storage) -> None:
    storage.put("photos/ann/1.png", b"x")
    hidden(storage, "photos/bob", 500)
    hidden(storage, "mine", 500)
    Path(storage.uri, "photos", "cy", "deep").mkdir(parents=True)
    Path(storage.uri, "photos", ".tmp-lock").touch()
    found = {left.key: left.age for left in storage.unfinished("photos/")}
    assert found.keys() == {"photos/bob/.tmp-1", "photos/cy/deep/"}
    assert found["photos/bob/.tmp-1"] == pytest.approx(500, abs=30)
    assert {left.key for left in storage.unfinished(".tmp-")} == set()
    hidden(storage, "", 500)
    assert {left.key for left in storage.unfinished(".tmp-")} == {".tmp-1"}
    assert len(list(storage.unfinished())) == 4
    assert sweep(storage, ["photos/", ".tmp-"]) == []
    left = sorted(str(path.relative_to(storage.uri)) for path in Path(storage.uri).rglob("*"))
    assert left == ["mine", "mine/.tmp-1", "photos", "photos/.tmp-lock", "photos/ann", "photos/ann/1.png"]
    assert list(storage.unfinished("none/")) == []


def test_links_are_not_followed(storage: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".tmp-1").write_bytes(b"x")
    (outside / "empty").mkdir()
    Path(storage.uri, "photos").mkdir()
    Path(storage.uri, "photos", "bob").symlink_to(outside)
    assert list(storage.unfinished("photos/")) == []
    with pytest.raises(StorageError, match="a link leads out"):
        list(storage.unfinished("photos/bob/"))
    assert (outside / ".tmp-1").exists()


def test_what_is_young_stays(storage: Storage) -> None:
    file = hidden(storage, "done", 5)
    (line,) = sweep(storage, ["done/"])
    assert "1 unfinished writes" in line and file.exists()
