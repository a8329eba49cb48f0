"""The end of identities and of a run, without Ray: the tasks run in this process, in the order that Ray gets them."""

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dladiff.errors import StorageError
from pipeline.records import loading, manifest
from pipeline.records.index import read_index
from pipeline.run import driver, finalise
from pipeline.run.todo import Todo
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from tests.support.in_process import Scene, in_process
from tests.support.photo_bytes import flat_photo


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(driver, "results", in_process)
    made = Scene(str(tmp_path))
    made.fill()
    return made


def test_a_change_of_one_identity_reads_and_writes_its_rows_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scene.run().done == 3
    assert [row["identity"] for row in scene.manifest()] == ["ann"] * 5 + ["bob"] + ["cleo"] * 2
    scene.source.put("bob/1.png", flat_photo(190))
    scene.source.put("abe/1.png", flat_photo(191))
    read: list[str] = []
    load = loading.load

    def noted(storage: Storage, key: str, *limit: int) -> dict[str, Any]:
        read.append(key)
        return load(storage, key, *limit)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load", noted)
        assert scene.run().done == 2
    assert {key for key in read if key.startswith("done/")} == {"done/bob.json", "done/abe.json"}
    assert [row["identity"] for row in scene.manifest()] == ["abe"] + ["ann"] * 5 + ["bob"] + ["cleo"] * 2
    assert [row["identity"] for row in scene.manifest("identities")] == ["abe", "ann", "bob", "cleo"]
    assert read_index(scene.output).fresh
    assert scene.equal_to_a_rebuilt_one()


def test_photos_that_no_record_names_are_swept_as_identities_end(scene: Scene) -> None:
    orphan, foreign = "photos/bob/1.0123456789ab.png", "photos/bob/holiday.png"
    for key in (orphan, foreign):
        scene.output.put(key, b"x")
    scene.run()
    assert scene.output.tag(orphan) is None and scene.output.tag(foreign) is not None
    old = {row["output_key"] for row in scene.manifest() if row["identity"] == "ann"}
    scene.config = scene.config.replaced(max_photos_per_task=3)
    assert scene.run().done == 1
    assert sorted(e.key for e in scene.output.list("done/ann")) == ["done/ann~0001.json", "done/ann~0002.json"]
    assert {row["output_key"] for row in scene.manifest() if row["identity"] == "ann"} == old  # the same photos
    assert len(scene.manifest()) == 8 and scene.equal_to_a_rebuilt_one()


def test_identities_that_left_the_records_leave_the_manifests(scene: Scene) -> None:
    scene.run()
    scene.output.delete("done/bob.json")
    assert manifest.write_manifest(scene.output) == (7, 2)
    assert {row["identity"] for row in scene.manifest()} == {"ann", "cleo"}
    assert scene.equal_to_a_rebuilt_one()


@pytest.mark.parametrize("key", list(manifest.FILES))
def test_a_manifest_that_another_wrote_is_not_used(scene: Scene, key: str) -> None:
    scene.run()
    before = scene.output.get(key)
    forged = pq.read_table(io.BytesIO(before)).slice(1)
    file = io.BytesIO()
    pq.write_table(forged, file)
    for damage in (file.getvalue(), b"PAR1"):
        scene.output.put(key, damage)
        manifest.write_manifest(scene.output)
        assert scene.output.get(key) == before


def test_a_storage_that_fails_for_a_while_costs_no_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, tag = ["done/bob.json"], LocalStorage.tag

    def fails(self: LocalStorage, key: str) -> str | None:
        if key in failing:
            failing.remove(key)
            raise StorageError("cannot reach the storage; check the network")
        return tag(self, key)

    monkeypatch.setattr(finalise.Finaliser, "_end", _with(fails, monkeypatch))
    assert scene.run().done == 3
    assert failing == [] and len(scene.manifest()) == 8


def _with(fails: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    end = finalise.Finaliser._end

    def _end(self: finalise.Finaliser, name: str) -> None:
        monkeypatch.setattr(LocalStorage, "tag", fails)
        end(self, name)

    return _end


def test_the_longest_task_starts_first_and_equal_ones_in_the_order_of_the_plan(tmp_path: Path) -> None:
    class Sized:
        def __init__(self, size: int) -> None:
            self.size = size

    todo = Todo(tmp_path)
    for sizes in ((5,), (5, 5), (9,), (5, 5), (1, 1, 1)):
        todo.task({}, [Sized(size) for size in sizes])  # type: ignore[misc]
    assert (todo.order(), todo.photos) == ([4, 1, 3, 2, 0], 9)
