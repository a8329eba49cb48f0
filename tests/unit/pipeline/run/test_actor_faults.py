"""ProtectIdentity without Ray: faults of an identity and of the whole run."""

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dladiff.errors import BusyError, StorageError
from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.records.manifest import ParquetFile
from pipeline.records.schema import TODO
from pipeline.run.actor import ProtectIdentity
from pipeline.storage import local as local_storage
from pipeline.storage import whole_files
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.support.actor_calls import call, png
from tests.support.fakes import AddNoise
from tests.support.kept import kept_decoders


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    source = open_storage(tmp_path / "in", create=True)
    for i in range(3):
        source.put(f"ann/{i}.png", png(i))
    open_storage(tmp_path / "out", create=True)
    return RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), protector="tests.support.fakes:AddNoise")


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    with kept_decoders():
        yield


@pytest.fixture
def output(config: RunConfig) -> Storage:
    return open_storage(config.output)


def test_models_that_cannot_be_loaded_are_no_identitys_fault(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, *_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(AddNoise, "__init__", broken)
    result = call(config)
    assert (result["status"], result["reason"]) == (
        "fatal", "the models cannot be loaded: RuntimeError: no such kernel",
    )  # fmt: skip


def test_a_damaged_stored_plan_ends_the_run(config: RunConfig, output: Storage) -> None:
    output.put("plan/todo-r.parquet", b"no parquet")
    place = {"plan": "plan/todo-r.parquet", "row": 0, "size": 10, "sha256": hashlib.sha256(b"no parquet").hexdigest()}
    result = json.loads(ProtectIdentity(config.to_dict(), "r", "d")({"work": json.dumps(place)})["result"])
    assert result["status"] == "storage"


@pytest.mark.parametrize("forged", ["of the same size", "longer"])
def test_a_list_of_work_that_somebody_replaced_ends_the_run(
    config: RunConfig, output: Storage, tmp_path: Path, forged: str
) -> None:
    """Who may write the output must not make actors read other files, or write where they like."""

    def listed(identity: str, more: str = "") -> bytes:
        photos = [{"key": "0.png", "uri": f"{config.input}/ann/0.png"}]
        work = {"identity": identity, "part": 0, "parts": 1, "key": "k", "replaces": None, "photos": photos}
        file = ParquetFile(tmp_path, TODO)
        file.add({"work": json.dumps(work | {"clean": [], "more": more})})
        file.close()
        return file.path.read_bytes()

    ours = listed("ann")
    place = {"plan": "plan/todo-r.parquet", "row": 0, "size": len(ours), "sha256": hashlib.sha256(ours).hexdigest()}
    actor = ProtectIdentity(config.to_dict(), "r", "d")
    output.put("plan/todo-r.parquet", listed("eve", "" if forged == "of the same size" else "x" * 1000))
    result = json.loads(actor({"work": json.dumps(place)})["result"])
    assert result["status"] == "storage" and "was changed during the run" in result["reason"]
    assert [entry.key for entry in output.list()] == ["plan/todo-r.parquet"]
    output.put("plan/todo-r.parquet", ours)
    assert json.loads(actor({"work": json.dumps(place)})["result"])["identity"] == "ann"


def test_a_bug_is_the_identitys_and_the_start_is_forgotten(config: RunConfig, output: Storage) -> None:
    result = call(config, "raises")
    assert (result["status"], result["reason"]) == ("failed", "ValueError: a bug in the method")
    assert "Traceback" in records.load(output, "failed/raises.json")["traceback"]
    assert list(output.list("starts/")) == []


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError])
def test_no_exception_leaves_the_actor(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def broken(*_: Any) -> Any:
        raise kind()

    monkeypatch.setattr("tests.support.fakes.AddNoise.protect_identity", broken)
    assert call(config)["status"] == "failed"
    assert records.load(output, "failed/ann.json")["reason"].startswith(kind.__name__)


def test_a_crash_loop_ends_in_quarantine(config: RunConfig, output: Storage) -> None:
    for _ in range(config.max_starts):
        records.write_start(output, ("ann", 0), "k", "r")
    result = call(config)
    assert result["status"] == "quarantined"
    assert "4 starts without an end" in result["reason"]
    assert call(config, key="other")["status"] == "done"


def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = whole_files.publish

    def full(temp: Path, path: Path) -> None:
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(temp, path)

    monkeypatch.setattr(local_storage, "publish", full)
    result = call(config)
    assert result["status"] == "storage"
    assert "disk full" in result["reason"]
    assert list(output.list()) == []
    assert not [p for p in Path(output.uri).rglob("*.png")]


class Flaky:
    """Makes an operation of LocalStorage answer BusyError a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
        self.left = times
        real = getattr(LocalStorage, name)

        def operation(storage: LocalStorage, *arguments: Any, **options: Any) -> Any:
            if self.left:
                self.left -= 1
                raise BusyError("S3 is overloaded")
            return real(storage, *arguments, **options)

        monkeypatch.setattr(LocalStorage, name, operation)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr("pipeline.storage.retry.time.sleep", waits.append)
    return waits


@pytest.mark.parametrize("name", ["get", "put", "put_if_absent", "list", "delete"])
def test_an_outage_costs_time_alone(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, no_wait: list[float], name: str
) -> None:
    flaky = Flaky(monkeypatch, name, 3)
    result = call(config)
    assert (result["status"], result["failed_photos"], flaky.left) == ("done", 0, 0)
    assert no_wait


def test_an_outage_without_end_stops_the_run_and_blames_no_photo(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Flaky(monkeypatch, "get", 10**9)
    result = call(config.replaced(patience_s=0))
    assert (result["status"], result["reason"]) == ("storage", "S3 is overloaded")
    monkeypatch.undo()
    assert list(output.list("failed/")) == []


def test_secrets_in_an_error_of_the_method_are_not_stored(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("no answer from http://user:5ec4e7@host")

    monkeypatch.setattr(AddNoise, "protect_identity", fails)
    assert call(config)["reason"] == "ValueError: no answer from http://***@host"
    assert b"5ec4e7" not in output.get("failed/ann.json")
    assert b"Traceback" in output.get("failed/ann.json")


def test_an_outage_while_one_photo_is_stored_is_the_runs(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (BusyError("S3 is down"), StorageError("access denied to out"), StorageError("disk full")):
        with monkeypatch.context() as patch:
            refuse(patch, "1.", error)
            result = call(config.replaced(patience_s=0))
            assert (result["status"], result["reason"]) == ("storage", str(error))


def refuse(monkeypatch: pytest.MonkeyPatch, part: str, error: Exception) -> None:
    """Make storage raise an error for every photo whose key holds `part`."""
    real = LocalStorage.put

    def put(storage: LocalStorage, key: str, data: bytes, content_type: str | None = None) -> None:
        if key.startswith("photos/") and part in key:
            raise error
        real(storage, key, data, content_type)

    monkeypatch.setattr(LocalStorage, "put", put)
