"""The whole chain on a real Ray with a fake protector: what is done, what is not, and what a second run does."""

import io
import json
import os
import shutil
import signal
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dladiff.errors import ConfigError, ModelError, StorageError
from pipeline.config import RunConfig
from pipeline.records.lease import Lease
from pipeline.records.manifest import write_manifest
from pipeline.run import engine
from pipeline.run.driver import Summary, protect
from pipeline.run.plan import Retry, make_plan
from pipeline.run.verify import verify
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.faults.harness import Scene, check_storage, until
from tests.support.photo_bytes import flat_photo

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("collected"), pytest.mark.filterwarnings("ignore")]


def fill(storage: Storage) -> None:
    for place in ("ann/1", "ann/2", "bob/set_A/1", "bob/set_B/1", "bob/set_C/1", "single"):
        storage.put(f"{place}.png", flat_photo(len(place) * 7))


def configured(source: str, target: str) -> RunConfig:
    return RunConfig(input=source, output=target, protector="tests.support.fakes:AddNoise", max_actors=2)


def rows(target: Storage, name: str) -> list[dict[str, object]]:
    table: list[dict[str, object]] = pq.read_table(io.BytesIO(target.get(f"manifest/{name}.parquet"))).to_pylist()
    return table


def adds_up(summary: Summary) -> bool:
    return summary.planned == summary.done + summary.failed + summary.quarantined + summary.skipped


def full_life(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = open_storage(source, create=True)
    fill(photos)
    config = configured(source, target)
    first = protect(config)
    output = open_storage(target)
    assert (first.planned, first.done, first.exit_code) == (3, 3, 0)
    assert adds_up(first)
    written = rows(output, "photos")
    assert [r["identity"] for r in written] == ["ann", "ann", "bob", "single"]
    assert {r["status"] for r in written} == {"protected"}
    assert [r["reason"] for r in written if r["identity"] == "bob"] == ["1 clean"]
    assert list(output.list("starts/")) == []
    assert output.tag("lock.json") is None
    checked = verify(output)
    assert (checked.photos, checked.compared, checked.faults) == (4, 4, [])

    with monkeypatch.context() as patch:
        patch.setattr(engine, "started", lambda: pytest.fail("Ray was started for nothing"))
        again = protect(config)
    assert (again.skipped, again.todo, again.exit_code) == (3, 0, 0)

    before = {e.key: e.tag for e in output.list("done/")}
    photos.put("ann/2.png", flat_photo(200))
    third = protect(config)
    assert (third.done, third.skipped) == (1, 2)
    after = {e.key: e.tag for e in output.list("done/")}
    assert {k for k in after if after[k] != before[k]} == {"done/ann.json"}

    kept = output.get("manifest/photos.parquet")
    output.delete("manifest/photos.parquet")
    assert write_manifest(output) == (4, 3)
    assert output.get("manifest/photos.parquet") == kept


def test_life_of_a_run_on_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_life(str(tmp_path / "in"), str(tmp_path / "in" / "out"), monkeypatch)


@pytest.mark.usefixtures("cluster")
def test_life_of_a_run_on_s3(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full_life(f"{s3_uri}/in", f"{s3_uri}/out", monkeypatch)


@pytest.mark.usefixtures("cluster")
def test_faults_stay_with_their_identity(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    photos = open_storage(str(source), create=True)
    for place in ("ann/1", "ann/2", "dies/1", "raises/1", "zoe/1"):
        photos.put(f"{place}.png", flat_photo(90))
    (source / "ann" / "2.png").write_bytes(flat_photo(3)[:90])
    config = configured(str(source), str(target)).replaced(max_starts=2)
    summary = protect(config)
    assert (summary.done, summary.failed, summary.quarantined, summary.lost_photos) == (2, 1, 1, 1)
    assert adds_up(summary)
    assert summary.exit_code == 1
    output = open_storage(str(target))
    assert {e.key for e in output.list("done/")} == {"done/ann.json", "done/zoe.json"}
    record = json.loads(output.get("failed/raises.json"))
    assert "ValueError: a bug in the method" in record["traceback"]
    assert record["attempts"] == 1
    assert json.loads(output.get("failed/dies.json"))["reason"].startswith("quarantined: 2 starts")
    by_uri = {
        Path(str(r["source_uri"])).parent.name + Path(str(r["source_uri"])).name: r for r in rows(output, "photos")
    }
    assert by_uri["ann2.png"]["status"] == "failed"
    assert by_uri["ann1.png"]["status"] == "protected"
    assert len(by_uri) == 5

    second = protect(config)
    assert (second.todo, second.skipped, second.exit_code) == (0, 2, 1)
    assert adds_up(second)

    (source / "ann" / "2.png").write_bytes(flat_photo(3))
    shutil.rmtree(source / "dies")
    retried = protect(config, retry=Retry())
    assert (retried.done, retried.failed, retried.skipped) == (1, 1, 1)
    assert json.loads(output.get("failed/raises.json"))["attempts"] == 2


@pytest.mark.usefixtures("cluster")
def test_a_model_that_is_missing_stops_the_run(tmp_path: Path) -> None:
    open_storage(str(tmp_path / "in"), create=True).put("ann/1.png", flat_photo(90))
    config = configured(str(tmp_path / "in"), str(tmp_path / "out")).replaced(protector="tests.support.fakes:NoModel")
    with pytest.raises(ModelError, match="no weights at nowhere"):
        protect(config)
    assert not (tmp_path / "out" / "lock.json").exists()


def test_second_driver_is_refused(tmp_path: Path) -> None:
    open_storage(str(tmp_path / "in"), create=True).put("ann/1.png", flat_photo(90))
    output = open_storage(str(tmp_path / "out"), create=True)
    with Lease(output), pytest.raises(StorageError, match=f"pid {os.getpid()}"):
        protect(configured(str(tmp_path / "in"), str(tmp_path / "out")))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("umask", "folders"), [("077", 0o700), ("027", 0o750)])
def test_who_may_read_the_output_of_a_run(tmp_path: Path, umask: str, folders: int) -> None:
    """Files of the driver and of the actors: in each, the workers' umask is that of the run."""
    open_storage(str(tmp_path / "in"), create=True).put("ann/1.png", flat_photo(90))
    os.umask(0o022)
    config = configured(str(tmp_path / "in"), str(tmp_path / "out")).replaced(umask=umask)
    assert protect(config).done == 1
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {folders}
    assert {mode for path, mode in modes.items() if path.is_file()} == {folders & 0o666}
    names = {path.name for path in modes}
    assert {"ann.json", "photos.parquet", "latest.json"} < names and any(name.endswith(".png") for name in names)


def test_output_that_is_the_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the input itself"):
        protect(configured(str(tmp_path), str(tmp_path)))


def parts(source: str, target: str) -> None:
    photos = open_storage(source, create=True)
    for i in range(7):
        photos.put(f"ann/{i}.png", flat_photo(10 * i))
    photos.put("bob/0.png", flat_photo(99))
    config = configured(source, target).replaced(max_photos_per_task=3, method={"clean_photos": 2})
    first = protect(config)
    assert (first.planned, first.todo, first.done, first.exit_code) == (2, 4, 2, 0)
    assert adds_up(first)
    output = open_storage(target)
    assert sorted(e.key for e in output.list("done/")) == [
        *(f"done/ann~000{part}.json" for part in (1, 2, 3)),
        "done/bob.json",
    ]
    (ann, bob) = rows(output, "identities")
    assert (ann["identity"], ann["status"], ann["photos"], ann["parts"]) == ("ann", "done", 7, 3)
    assert (bob["photos"], bob["parts"]) == (1, 1)
    written = rows(output, "photos")
    assert len({r["source_uri"] for r in written}) == len(written) == 8
    assert {r["reason"] for r in written if r["identity"] == "ann"} == {"7 clean"}  # the same candidates for each part
    assert verify(output).faults == verify(output).orphans == []

    whole = protect(config.replaced(max_photos_per_task=64))
    assert (whole.done, whole.skipped) == (1, 1)
    assert sorted(e.key for e in output.list("done/")) == ["done/ann.json", "done/bob.json"]
    assert len(rows(output, "photos")) == 8
    assert verify(output).orphans == []
    assert list(output.list("plan/todo-")) == []


@pytest.mark.usefixtures("cluster")
def test_an_identity_of_many_photos_is_several_tasks_and_one_row(tmp_path: Path) -> None:
    parts(str(tmp_path / "in"), str(tmp_path / "out"))


@pytest.mark.usefixtures("cluster")
def test_many_tasks_reach_ray_through_the_output(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "IN_MEMORY", 0)
    parts(f"{s3_uri}/in", f"{s3_uri}/out")


def test_ray_s_own_first_line_is_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_storage(str(tmp_path / "in"), create=True).put("ann/1.png", flat_photo(7))
    assert protect(configured(str(tmp_path / "in"), str(tmp_path / "out"))).done == 1
    out, err = capfd.readouterr()
    assert out == "" and "1/1 ann: done" in err and "log level" not in err


@pytest.mark.usefixtures("cluster")
def test_no_task_is_begun_after_the_deadline(tmp_path: Path) -> None:
    fill(open_storage(str(tmp_path / "in"), create=True))
    config = configured(str(tmp_path / "in"), str(tmp_path / "out"))
    late = protect(config, deadline=datetime.now(UTC) - timedelta(minutes=1))
    assert (late.planned, late.skipped, late.left, late.done, late.exit_code) == (3, 3, 3, 0, 1)
    assert adds_up(late)
    assert protect(config).done == 3


@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(300)  # the second identity never ends; Ray Data may begin with either
def test_a_result_is_told_when_it_is_there_not_with_the_next(tmp_path: Path) -> None:
    source, target = (open_storage(str(tmp_path / name), create=True) for name in ("in", "out"))
    for name in ("ann", "bob"):
        source.put(f"{name}/1.png", flat_photo(7))
    config = configured(source.uri, target.uri).replaced(max_actors=1, protector="tests.support.fakes:OneThenStalls")
    plan = make_plan(config, folder=tmp_path)
    assert plan.todo_file is not None
    with closing(engine.results(config, plan.todo_file, target, "run")) as stream:
        assert next(stream)["status"] == "done"


def test_more_than_the_machine_has_is_told(tmp_path: Path) -> None:
    fill(open_storage(str(tmp_path / "in"), create=True))
    config = configured(str(tmp_path / "in"), str(tmp_path / "out"))
    for asked in (config.replaced(cpus_per_actor=4096), config.replaced(gpus_per_actor=64)):
        with pytest.raises(ConfigError, match="is more than this machine has"):
            protect(asked)
    assert protect(config).done == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_says_so_in_one_line_and_goes_on_later(
    tmp_path: Path, number: signal.Signals
) -> None:
    scene = Scene(str(tmp_path / "in"), str(tmp_path / "out"), tmp_path)
    scene.fill("ann", "bob", "cleo")
    process = scene.start()
    until(scene.starts, "a start")
    process.send_signal(number)
    ended = scene.end(process)
    assert (ended.code, ended.facts) == (1, {})
    assert "stopped: what is done is kept; run the same command again to continue" in ended.errors.splitlines()
    assert "received at time" not in ended.errors and "Traceback" not in ended.errors, ended.errors
    assert scene.output.tag("lock.json") is None
    again = scene.run()
    assert again.code == 0, again.errors
    assert again.facts["done"] + again.facts["skipped"] == 3
    assert check_storage(scene.output) == {"protected": 6}


@pytest.mark.parametrize(("group", "times"), [(False, 2), (True, 1), (True, 2)])
def test_a_second_signal_or_one_to_the_whole_group_leaves_one_line_and_no_lease(
    tmp_path: Path, group: bool, times: int
) -> None:
    scene = Scene(str(tmp_path / "in"), str(tmp_path / "out"), tmp_path)
    scene.fill("ann", "bob", "cleo")
    process = scene.start()
    until(scene.starts, "a start")
    for _ in range(times):
        (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
        time.sleep(0.3)  # the second comes while the first is handled
    ended = scene.end(process)
    assert ended.code == 1, ended.errors
    assert ended.errors.splitlines()[-1:] == ["stopped: what is done is kept; run the same command again to continue"]
    assert "Traceback" not in ended.errors and "received at time" not in ended.errors, ended.errors
    assert scene.output.tag("lock.json") is None
    again = scene.run()
    assert again.code == 0, again.errors
    assert again.facts["done"] + again.facts["skipped"] == 3
