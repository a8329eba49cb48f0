"""ProtectIdentity without Ray: which fault belongs to a photo, to its identity, and to the whole run."""

import errno
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dladiff.core.exchange import IdentityOut
from dladiff.errors import StorageError
from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.records.output_format import encode_checked
from pipeline.run.grouped import together
from pipeline.run.plan import identities, listed
from pipeline.sources.addresses import OUTSIDE
from pipeline.storage import local as local_storage
from pipeline.storage import whole_files
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.support.actor_calls import Row, call, png
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


def test_a_photo_that_is_gone_is_skipped_and_one_that_is_damaged_fails(config: RunConfig, output: Storage) -> None:
    open_storage(config.input).delete("ann/0.png")
    open_storage(config.input).put("ann/1.png", png(1)[:60])
    result = call(config)
    assert (result["status"], result["failed_photos"]) == ("done", 1)
    assert [row["status"] for row in result["rows"]] == ["skipped", "failed", "protected"]
    assert "gone since it was planned" in result["rows"][0]["reason"]
    record = records.load_record(output, "done/ann.json")
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
    for row in records.load_record(output, "done/ann.json")["photos"]:
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
    settings = [json.loads(row["joint_layers"]) for row in records.load_record(output, "done/ann.json")["photos"]]
    assert all("zero_shot" not in found and found["visibility"] == 75 for found in settings)
    assert call(config.replaced(method={"visibility": 0}), "bob")["status"] == "done"
    rows = records.load_record(output, "done/bob.json")["photos"]
    assert {(row["finetuning_layer"] is None, row["zero_shot_layer"] is None) for row in rows} == {(False, True)}


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
    record = records.load_record(output, "done/ann.json")
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
