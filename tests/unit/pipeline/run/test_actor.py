"""ProtectIdentity without Ray: which fault belongs to a photo, to its identity, and to the whole run."""

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dladiff.core.exchange import IdentityOut
from dladiff.errors import BusyError, StorageError
from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.records.manifest import ParquetFile
from pipeline.records.output_format import encode_checked
from pipeline.records.schema import TODO
from pipeline.run.actor import ProtectIdentity
from pipeline.run.grouped import together
from pipeline.run.plan import identities, listed
from pipeline.sources.addresses import OUTSIDE
from pipeline.storage import local as local_storage
from pipeline.storage import whole_files
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.support.fakes import AddNoise
from tests.support.kept import kept_decoders
from tests.support.photo_bytes import rgb, saved

Row = dict[str, Any]


def png(shade: int) -> bytes:
    return saved(rgb().point(lambda value: max(value - shade, 0)), "PNG")


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


def call(config: RunConfig, identity: str = "ann", **more: Any) -> Row:
    photos = [{"key": f"ann/{i}.png", "uri": f"{config.input}/ann/{i}.png"} for i in range(3)]
    work = {"identity": identity, "part": 0, "parts": 1, "key": "k", "replaces": None, "photos": photos, "clean": []}
    result: Row = json.loads(ProtectIdentity(config.to_dict(), "r", "d")({"work": json.dumps(work | more)})["result"])
    return result


def test_a_photo_that_is_gone_is_skipped_and_one_that_is_damaged_fails(config: RunConfig, output: Storage) -> None:
    open_storage(config.input).delete("ann/0.png")
    open_storage(config.input).put("ann/1.png", png(1)[:60])
    result = call(config)
    assert (result["status"], result["failed_photos"]) == ("done", 1)
    assert [row["status"] for row in result["rows"]] == ["skipped", "failed", "protected"]
    assert "gone since it was planned" in result["rows"][0]["reason"]
    record = records.load(output, "done/ann.json")
    assert [p["status"] for p in record["photos"]] == ["skipped", "failed", "protected"]
    for layer, ran in (("finetuning_layer", False), ("zero_shot_layer", False), ("joint_layers", True)):
        assert [p[layer] is None for p in record["photos"]] == [True, True, not ran]  # null where it did not run
    assert len(list(output.list("photos/"))) == 1
    assert list(output.list("starts/")) == []


class Strangers(AddNoise):
    """Reports four faces with nothing in common, as the method does for four strangers."""

    def protect_identity(self, *given: Any) -> IdentityOut:
        return replace(super().protect_identity(*given), largest_faces=list(np.eye(4, dtype=np.float32)))


def test_photos_of_different_people_are_noted_in_each_row(config: RunConfig, output: Storage) -> None:
    result = call(config.replaced(protector=f"{__name__}:Strangers"))
    assert (result["status"], result["mixed"]) == ("done", True)
    for row in records.load(output, "done/ann.json")["photos"]:
        assert row["status"] == "protected"
        assert "photos of this identity show different people (median similarity 0.00 of 4 faces)" in row["reason"]
        assert row["reason"].endswith("use --layout flat")
    assert not call(config, key="k2")["mixed"]


def test_faces_of_all_groups_are_compared_together(config: RunConfig) -> None:
    half = IdentityOut([], {}, 1, "cpu", [], {}, largest_faces=list(np.eye(4, dtype=np.float32)[:2]))
    other = replace(half, largest_faces=list(np.eye(4, dtype=np.float32)[2:]))
    assert len(together([half, other]).largest_faces) == 4


def test_a_clean_set_that_cannot_be_read_is_reported(config: RunConfig, output: Storage) -> None:
    clean = [{"key": f"clean/{i}.png", "uri": f"{config.input}/clean/{i}.png"} for i in range(2)]
    open_storage(config.input).put("clean/0.png", b"no photo")
    for good, words in ((False, "2 of 2 photos.*the photos themselves were used"), (True, "1 of 2 photos .*0.png")):
        if good:
            open_storage(config.input).put("clean/1.png", png(1))
        result = call(config, clean=clean)
        assert result["status"] == "done"
        assert all(re.search(words, row["reason"]) for row in result["rows"])
    open_storage(config.input).put("ann/1.png", b"")
    assert ["clean set" in row["reason"] for row in call(config, clean=clean)["rows"]] == [True, False, True]


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


def test_a_photo_that_an_index_file_names_and_that_is_not_there_fails(config: RunConfig, output: Storage) -> None:
    open_storage(config.input).delete("ann/0.png")
    photos: list[Row] = [{"key": f"ann/{i}.png", "uri": f"{config.input}/ann/{i}.png"} for i in range(3)]
    photos[0]["missing"] = True
    result = call(config, photos=photos)
    assert (result["status"], result["failed_photos"]) == ("done", 1)
    assert "fix the index file" in result["rows"][0]["reason"]


def test_layer_two_did_not_run_where_there_is_no_face(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = AddNoise._one
    bare: dict[str, Any] = {"faces": [], "status": "layer1_only", "similarity": []}
    monkeypatch.setattr(AddNoise, "_one", staticmethod(lambda photo, clean: replace(one(photo, clean), **bare)))
    assert call(config)["status"] == "done"
    settings = [json.loads(row["joint_layers"]) for row in records.load(output, "done/ann.json")["photos"]]
    assert all("zero_shot" not in found and found["visibility"] == 75 for found in settings)
    assert call(config.replaced(method={"visibility": 0}), "bob")["status"] == "done"
    rows = records.load(output, "done/bob.json")["photos"]
    assert {(row["finetuning_layer"] is None, row["zero_shot_layer"] is None) for row in rows} == {(False, True)}


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


def test_an_identity_that_is_gone_is_skipped_without_a_record(config: RunConfig, output: Storage) -> None:
    for i in range(3):
        open_storage(config.input).delete(f"ann/{i}.png")
    assert call(config)["status"] == "skipped"
    assert list(output.list()) == []


def test_photos_of_an_index_file_are_read_where_they_are(config: RunConfig, tmp_path: Path, output: Storage) -> None:
    (tmp_path / "index.csv").write_text("identity,uri\n")
    photos = [{"key": "not used", "uri": f"{config.input}/ann/{i}.png"} for i in range(3)]
    assert call(config.replaced(input=str(tmp_path / "index.csv")), photos=photos)["status"] == "done"
    assert len(list(output.list("photos/ann/"))) == 3


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


def test_no_permission_to_one_photo_is_its_own_fault(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LocalStorage.get

    def denied(storage: LocalStorage, key: str, limit: int | None = None) -> bytes:
        if key == "ann/1.png":
            raise StorageError("no permission to read ann/1.png")
        return real(storage, key, limit)

    monkeypatch.setattr(LocalStorage, "get", denied)
    result = call(config)
    assert [row["status"] for row in result["rows"]] == ["protected", "failed", "protected"]


def test_a_photo_whose_address_the_index_may_not_name_fails_alone(config: RunConfig, output: Storage) -> None:
    (Path(config.input) / "index.csv").write_text("identity,uri\nann,ann/0.png\nann,/etc/passwd\nann,http://[bad\n")
    config = config.replaced(input=f"{config.input}/index.csv")
    (ann,) = identities(config, output)
    result = call(config, photos=listed(ann.photos))
    assert {row["source_uri"].rpartition("/")[2]: (row["status"], row["reason"]) for row in result["rows"]} == {
        "0.png": ("protected", ""),
        "passwd": ("failed", f"the index names it by an address that is refused: {OUTSIDE}"),
        "[bad": (
            "failed",
            "the index names it by an address that is refused: its scheme is unknown; use a path, file:// or s3://",
        ),
    }
    record = records.load(output, "done/ann.json")
    assert [photo["source_uri"] for photo in record["photos"] if photo.get("source_sha256")] == [
        f"{Path(config.input).parent}/ann/0.png"
    ]


def test_a_link_that_is_put_in_after_the_plan_is_not_read(config: RunConfig, output: Storage, tmp_path: Path) -> None:
    index = Path(config.input) / "index.csv"
    index.write_text("identity,uri\nann,ann/0.png\nann,ann/1.png\nann,ann/2.png\n")
    photo = Path(config.input) / "ann/1.png"
    secret = photo.rename(tmp_path / "secret.png")
    photo.symlink_to(secret)
    photos = [{"key": f"{i}.png", "uri": f"{config.input}/ann/{i}.png"} for i in range(3)]
    linked = call(config.replaced(input=str(index)), photos=photos)["rows"][1]
    assert (linked["status"], OUTSIDE in linked["reason"]) == ("failed", True)
    allowed = call(config.replaced(input=str(index), allow_roots=(str(tmp_path),)), photos=photos, key="k2")
    assert [row["status"] for row in allowed["rows"]] == ["protected"] * 3


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


def test_a_name_that_storage_refuses_is_the_photos_fault(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = whole_files.publish

    def publish(temp: Path, path: Path) -> None:
        if path.name.startswith("1."):
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        real(temp, path)

    monkeypatch.setattr(local_storage, "publish", publish)
    result = call(config)
    assert (result["status"], result["failed_photos"]) == ("done", 1)
    assert [row["status"] for row in result["rows"]] == ["protected", "failed", "protected"]
    assert "the name is too long" in result["rows"][1]["reason"]
    assert len(list(output.list("photos/"))) == 2


@pytest.mark.parametrize(
    "error", [ValueError("Decompressed data too large"), MemoryError(), OSError("encoder error -2")]
)
def test_a_photo_that_cannot_be_encoded_fails_alone(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls = []

    def encode(*arguments: Any) -> bytes:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return encode_checked(*arguments)

    monkeypatch.setattr("pipeline.run.actor.encode_checked", encode)
    result = call(config)
    assert (result["status"], result["failed_photos"], len(list(output.list("photos/")))) == ("done", 1, 2)
    (reason,) = (row["reason"] for row in result["rows"] if row["status"] == "failed")
    assert reason.startswith(f"cannot be encoded: {type(error).__name__}")
    assert "\n" not in reason


def test_where_photos_are_their_own_clean_set_only_their_own_rows_say_what_is_wrong(config: RunConfig) -> None:
    open_storage(config.input).put("ann/1.png", png(1)[:60])
    clean = [{"key": f"ann/{i}.png", "uri": f"{config.input}/ann/{i}.png"} for i in range(3)]
    rows = call(config, clean=clean, own_clean=True)["rows"]
    assert [row["status"] for row in rows] == ["protected", "failed", "protected"]
    assert not any("clean set" in row["reason"] for row in rows)
    rows = call(config, clean=clean, own_clean=False, key="k2")["rows"]
    assert "1 of 3 photos of the clean set cannot be used" in rows[0]["reason"]
