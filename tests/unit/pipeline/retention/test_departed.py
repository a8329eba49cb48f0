"""After retention nothing in an output, its results or its pages names or shows who left, whatever died before."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dladiff.errors import StorageError
from pipeline.evaluate.ratings import read_ratings
from pipeline.records import commit as records
from pipeline.retention import forget
from pipeline.retention.retain import Retained, Retention, retain
from pipeline.run.verify import verify
from pipeline.storage.keys import escape
from pipeline.storage.open import open_storage
from tests.support.departed import GHOSTS, LEFT, STAYS, Scene, files

GONE = Retention(gone=True)


def empty(folder: Path) -> Scene:
    return Scene(folder, str(folder / "in"), str(folder / "out"), str(folder / "results"))


@pytest.fixture(scope="module")
def _filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Path]:
    """A scene that is filled once, and a copy of its files."""
    top = tmp_path_factory.mktemp("departed").resolve()
    scene, copy = empty(top / "scene"), top / "copy"
    with pytest.MonkeyPatch.context() as patch:
        scene.fill(patch)
    shutil.copytree(scene.folder, copy, symlinks=True)
    return scene, copy


@pytest.fixture
def scene(_filled: tuple[Scene, Path]) -> Scene:
    """The filled scene as it was, at the same addresses."""
    scene, copy = _filled
    shutil.rmtree(scene.folder)
    shutil.copytree(copy, scene.folder, symlinks=True)
    return scene


def gone(scene: Scene, *, really: bool = True, rule: Retention = GONE) -> Retained:
    return retain(scene.output.uri, rule, scene.config, really=really)


def everything(scene: Scene) -> dict[str, bytes]:
    return files(scene.folder)


@pytest.mark.networks
def test_nothing_of_who_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = empty(tmp_path.resolve())
    scene.fill(monkeypatch, explained=True)
    scene.die_in_folders()
    scene.leave()
    before = everything(scene)
    assert len(scene.traces(before)) > 100
    dry = gone(scene, really=False)
    assert everything(scene) == before
    found = gone(scene)
    assert (found.due, found.outside, found.missed) == (dry.due, dry.outside, dry.missed)
    assert {one.identity for one in found.due} == {LEFT[0], LEFT[2], *GHOSTS, LEFT[1]}
    pages = [scene.folder / name for name in ("all.html", "linked.html", f"{LEFT[0]}.html")]
    assert set(found.outside) == {"report/index.html", scene.results.uri, *map(str, pages)}
    assert found.missed == []
    after = everything(scene)
    assert scene.traces(after) == []
    assert not any(name.startswith("linked") or ".tmp-" in name for name in after)


def test_who_stays_loses_nothing_but_what_shows_several_people(scene: Scene) -> None:
    scene.leave()
    kept = {
        key: data
        for key, data in everything(scene).items()
        if any(f"/{escape(name)}" in f"/{key}" for name in STAYS) and key.startswith("out/")
    }
    rows = {e.key: records.load(scene.results, e.key)["identity"] for e in scene.results.list("rows/")}
    own = {key[5:37] for key, name in rows.items() if name in STAYS}
    mine = {key: data for key, data in files(Path(scene.results.uri)).items() if any(name in key for name in own)}
    assert len(kept) > 8 and len(mine) > 20
    gone(scene)
    after = everything(scene)
    assert {key: after.get(key) for key in kept} == kept
    assert {key: data for key, data in files(Path(scene.results.uri)).items() if any(n in key for n in own)} == mine
    assert {name for name in rows.values()} == {*STAYS, *LEFT}
    left = files(Path(scene.results.uri))
    assert not [key for key in left if key.startswith(("sheets", "tables", "results.parquet"))]
    assert {row["identity"] for row in read_ratings(scene.results)} == set(STAYS)
    assert verify(scene.output).faults == verify(scene.output).orphans == []
    again = gone(scene)
    assert (again.due, again.outside, again.missed) == ([], [], [])
    assert everything(scene) == after


def test_cut_off_at_any_write_it_ends_in_the_same_state(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try may write once more than the one before; the last one ends."""
    scene.die_in_folders()
    scene.leave()
    tries = 0
    for allowed in range(0, 400, 3):
        tries += 1
        with monkeypatch.context() as patch:
            _cut_off(patch, type(scene.output), allowed)
            try:
                found = gone(scene)
                if not found.missed:  # cut off in results or pages it goes on with the rest, and says so
                    break
            except StorageError as error:
                assert "cut off" in str(error)
    assert tries > 5
    assert scene.traces(everything(scene)) == []
    assert (gone(scene).due, gone(scene).outside, gone(scene).missed) == ([], [], [])
    assert records.read_index(scene.output).fresh


def _cut_off(patch: pytest.MonkeyPatch, kind: Any, allowed: int) -> None:
    calls = 0

    def counted(real: Any) -> Any:
        def call(self: Any, key: Any, *rest: Any, **more: Any) -> Any:
            nonlocal calls
            calls += key != "lock.json"
            if calls > allowed and key != "lock.json":
                raise StorageError("cut off")
            return real(self, key, *rest, **more)

        return call

    for name in ("put", "put_file", "put_if_match", "delete", "discard"):
        patch.setattr(kind, name, counted(getattr(kind, name)))
    unlink = forget._unlink

    def cut(name: str, folder: int) -> None:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise OSError("cut off")
        unlink(name, folder)

    patch.setattr("pipeline.retention.forget._unlink", cut)


def test_kept_records_keep_names_and_no_photo(scene: Scene) -> None:
    scene.leave()
    gone(scene, rule=Retention(gone=True, records="keep"))
    after = everything(scene)
    assert not [line for line in scene.traces(after) if "a photo" in line]
    assert not [key for key in after if key.startswith(("out/photos", "out/traces")) and "Bob" in key]
    assert any(key.startswith("out/done/Bob") for key in after)
    assert not [line for line in scene.traces(after) if not line.startswith("out/")]


def test_leftovers_of_a_first_run_go_only_where_somebody_of_it_is_in_the_input(tmp_path: Path) -> None:
    scene = empty(tmp_path)
    scene.source.put("zoe/1.png", b"")
    scene.output.put("photos/bob/1.png", b"of a dead attempt")
    with pytest.raises(Exception, match="none of 1 recorded identities"):
        gone(scene)
    scene.output.put("starts/zoe/1.json", b"{}")
    assert [one.identity for one in gone(scene).due] == ["bob"]
    assert {entry.key for entry in scene.output.list("photos/")} == set()


def test_a_write_in_progress_is_kept_and_reported(tmp_path: Path) -> None:
    scene = empty(tmp_path)
    scene.source.put("zoe/1.png", b"")
    scene.output.put("starts/zoe/1.json", b"{}")
    young = tmp_path / "out" / "photos" / ".tmp-1"
    young.parent.mkdir()
    young.write_bytes(b"being written")
    (line,) = gone(scene).missed
    assert "1 unfinished writes" in line and "run this again later" in line
    assert young.exists()
    assert open_storage(scene.output.uri).tag("starts/zoe/1.json") is not None
