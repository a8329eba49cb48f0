"""Retention on a real folder: who is due, what goes, what stays, what is refused, and that a cut-off one goes on."""

import errno
import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dladiff.errors import ConfigError, StorageError
from pipeline.cli.main import main
from pipeline.config import RunConfig, run_config
from pipeline.records import commit as records
from pipeline.records.lease import Lease
from pipeline.records.manifest import write_manifest, write_rows
from pipeline.records.schema import PLAN
from pipeline.records.trace import write_trace
from pipeline.retention.retain import Due, Retention, retain
from pipeline.run.status import status
from pipeline.run.verify import verify
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape
from pipeline.storage.open import open_storage

NOW = datetime(2026, 7, 1, tzinfo=UTC)
AGES = {"ann": 10, "bob": 40, "cy/x": 50}  # days
GONE = Retention(gone=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in AGES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.png").write_bytes(b"never read")
    return tmp_path / "photos"


@pytest.fixture
def storage(tmp_path: Path, photos: Path) -> Storage:
    """Three people with two stored photos each (the last in two parts), a failure, starts, plans and a report."""
    out = open_storage(str(tmp_path / "out"), create=True)
    for name, days in AGES.items():
        parts = [1, 2] if name == "cy/x" else [0]
        for part in parts:
            ended = NOW - timedelta(days=days - part)
            _commit(out, name, part, len(parts), 2 // len(parts), ended)
    failure = {"identity": "bob", "key": "new", "status": "failed", "reason": "x", "photos": [], "identity_row": {}}
    records.fail(out, failure)
    records.write_start(out, ("cy/x", 2), "key", "run")
    for key in ("plan/plan-old.parquet", "plan/plan-new.parquet"):
        plan = [
            {"identity": name, "part": 0, "key": f"{name}-0", "uris": [f"{name}/0-0", f"{name}/0-1"], "plan_hash": "h"}
            for name in AGES
        ]
        write_rows(out, key, plan, PLAN)
    out.put("plan/latest.json", json.dumps({"plan": "plan/plan-new.parquet"}).encode())
    out.put("report/index.html", b"pictures")
    write_manifest(out)
    return out


def _commit(storage: Storage, name: str, part: int, parts: int, count: int, ended: datetime) -> None:
    rows = []
    for i in range(count):
        key = f"photos/{escape(name)}/{part}-{i}.png"
        storage.put(key, b"12345")
        places = {"output_key": key, "output_uri": storage.uri_of(key), "output_sha256": "0"}
        rows.append({"identity": name, "source_uri": f"{name}/{part}-{i}", "status": "protected", **places})
    about = {"identity": name, "status": "done", "photos": count, "failed_photos": 0, "seconds": {"read": 1.0}}
    about |= {"started_at": ended.isoformat(), "finished_at": ended.isoformat()}
    record = {"identity": name, "part": part, "parts": parts, "key": f"{name}-{part}", "photos": rows}
    assert records.commit(storage, record | {"identity_row": about})


def config(storage: Storage, photos: Path) -> RunConfig:
    return run_config(None, {"input": str(photos), "output": storage.uri})


def leave(photos: Path, name: str) -> None:
    (photos / name / "1.png").unlink()


def keys(storage: Storage) -> set[str]:
    return {entry.key for entry in storage.list()}


def everything(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def manifest(storage: Storage, name: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(io.BytesIO(storage.get(f"manifest/{name}.parquet"))).to_pylist()
    return rows


def test_nothing_is_deleted_by_default(storage: Storage, photos: Path) -> None:
    leave(photos, "bob")
    before = everything(photos.parent)
    (due,) = retain(storage.uri, GONE, config(storage, photos)).due
    assert due == Due(identity="bob", why="left the input", photos=2, bytes=10, forgotten=True)
    assert due.line() == "bob: left the input; 2 photos, 0.0 MB, with its records"
    assert everything(photos.parent) == before
    for values in ({}, {"records": "keep"}):
        with pytest.raises(ConfigError, match="nothing is to be deleted"):
            Retention(**values)  # type: ignore[arg-type]


def test_who_left_goes_with_every_trace_and_no_other(storage: Storage, photos: Path) -> None:
    leave(photos, "bob")
    leave(photos, "cy/x")
    write_trace(storage, "cy/x", 0, {"Layer 2, cy/x/1.png": {"residual": [0.9, 0.1]}})
    originals, ann = everything(photos), {key for key in keys(storage) if "ann" in key}
    due = retain(storage.uri, GONE, config(storage, photos), really=True).due
    assert [(one.identity, one.photos) for one in due] == [("bob", 2), ("cy/x", 2)]
    left = keys(storage)
    manifests = {"manifest/photos.parquet", "manifest/identities.parquet", "manifest/records.parquet"}
    settings = {key for key in left if key.startswith("settings/")}
    assert settings and left == ann | manifests | settings | {"plan/plan-new.parquet", "plan/latest.json"}
    assert everything(photos) == originals
    for key in left:
        assert not [name for name in (b"bob", b"cy/x", b"cy%2Fx") if name in storage.get(key)], key
    assert {row["identity"] for row in manifest(storage, "photos")} == {"ann"}
    assert verify(storage).orphans == []
    assert (status(storage)["done"], status(storage)["left"]) == (1, 0)
    assert retain(storage.uri, GONE, config(storage, photos), really=True).due == []


def test_by_age_photos_go_and_records_stay(storage: Storage, photos: Path) -> None:
    rule = Retention(protected_days=40)
    due = retain(storage.uri, rule, really=True, now=lambda: NOW).due
    assert [(one.identity, one.why, one.forgotten) for one in due] == [
        ("bob", "protected on 2026-05-22", False),
        ("cy/x", "protected on 2026-05-14", False),  # the newer of its parts
    ]
    assert {key for key in keys(storage) if key.startswith("photos/")} == {"photos/ann/0-0.png", "photos/ann/0-1.png"}
    index = records.read_index(storage)
    assert set(index.done) == {("ann", 0), ("bob", 0), ("cy/x", 1), ("cy/x", 2)}
    assert index.done["bob", 0].key == "bob-0"  # the next plan takes it for done
    assert set(index.failed) == {("bob", 0)}
    rows = {row["source_uri"]: row for row in manifest(storage, "photos")}
    assert rows["cy/x/1-0"]["output_key"] is None
    assert rows["cy/x/1-0"]["reason"] == "the protected photo was deleted on 2026-07-01, as retention asks"
    assert rows["ann/0-0"]["output_key"] == "photos/ann/0-0.png"
    assert not any("cy" in fault or "bob" in fault for fault in verify(storage).faults)
    assert retain(storage.uri, rule, really=True, now=lambda: NOW).due == []


def test_records_of_the_old_go_only_where_the_original_left(storage: Storage, photos: Path) -> None:
    leave(photos, "bob")
    rule = Retention(protected_days=45)
    due = retain(storage.uri, rule, config(storage, photos), now=lambda: NOW).due
    assert [(one.identity, one.forgotten) for one in due] == [("cy/x", False)]
    due = retain(storage.uri, Retention(protected_days=40), config(storage, photos), now=lambda: NOW).due
    assert [(one.identity, one.forgotten) for one in due] == [("bob", True), ("cy/x", False)]


def test_records_are_kept_on_request(storage: Storage, photos: Path) -> None:
    leave(photos, "bob")
    retain(storage.uri, Retention(gone=True, records="keep"), config(storage, photos), really=True)
    assert "done/bob.json" in keys(storage)
    assert not any(key.startswith("photos/bob/") for key in keys(storage))
    assert "plan/plan-old.parquet" in keys(storage)
    assert retain(storage.uri, Retention(gone=True, records="keep"), config(storage, photos)).due == []


@pytest.mark.parametrize("rule", [GONE, Retention(gone=True, records="keep")], ids=["delete", "keep"])
@pytest.mark.parametrize("after", range(5))
def test_cut_off_at_any_write_it_can_be_run_again(
    storage: Storage, photos: Path, monkeypatch: pytest.MonkeyPatch, rule: Retention, after: int
) -> None:
    leave(photos, "bob")
    wanted = config(storage, photos)
    calls = 0

    def cut_off(real: object) -> object:
        def call(self: Storage, key: str, *rest: object) -> object:
            nonlocal calls
            calls += 1
            if calls > after and key != "lock.json":
                raise StorageError("cut off")
            return real(self, key, *rest)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        kind = type(storage)
        for name in ("put", "put_file", "delete"):
            patch.setattr(kind, name, cut_off(getattr(kind, name)))
        with pytest.raises(StorageError, match="cut off"):
            retain(storage.uri, rule, wanted, really=True)
    retain(storage.uri, rule, wanted, really=True)
    assert retain(storage.uri, rule, wanted).due == []
    assert not any(key.startswith("photos/bob/") for key in keys(storage))
    assert ("done/bob.json" in keys(storage)) == (rule.records == "keep")
    if rule.records == "keep":
        assert [photo["output_key"] for photo in records.load(storage, "done/bob.json")["photos"]] == [None, None]
    assert records.read_index(storage).fresh  # the manifests are those of the records


def test_a_wrong_or_missing_input_deletes_nothing(storage: Storage, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "zoe").mkdir(parents=True)
    (tmp_path / "other" / "zoe" / "1.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    before = keys(storage)
    for place in ("other", "empty"):
        for rule in (GONE, Retention(protected_days=1)):
            with pytest.raises(ConfigError, match="none of 3 recorded identities"):
                retain(storage.uri, rule, config(storage, tmp_path / place), really=True)
    with pytest.raises(StorageError):
        retain(storage.uri, GONE, config(storage, tmp_path / "not there"), really=True)
    with pytest.raises(ConfigError, match="--gone: needs the input"):
        retain(storage.uri, GONE, really=True)
    assert keys(storage) == before


def test_a_person_whose_folder_cannot_be_read_has_not_left(
    storage: Storage, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == photos / "ann":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    before = keys(storage)
    with pytest.raises(StorageError, match="no permission to list"):
        retain(storage.uri, GONE, config(storage, photos), really=True)
    assert keys(storage) == before


def test_most_of_an_output_goes_only_when_somebody_looks(storage: Storage, photos: Path) -> None:
    leave(photos, "ann")
    leave(photos, "bob")
    with pytest.raises(ConfigError, match=r"2 of 3 recorded identities.*nothing is deleted"):
        retain(storage.uri, GONE, config(storage, photos), really=True, unattended=True)
    assert len(retain(storage.uri, GONE, config(storage, photos), really=True).due) == 2


def test_a_run_in_progress_is_waited_for(storage: Storage, photos: Path) -> None:
    leave(photos, "bob")
    with Lease(storage), pytest.raises(StorageError, match="another run"):
        retain(storage.uri, GONE, config(storage, photos), really=True)
    assert "done/bob.json" in keys(storage)


def test_an_output_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):  # a slip of the pen is no success
        retain(str(tmp_path / "none"), Retention(protected_days=1), really=True)
    assert not (tmp_path / "none").exists()


def test_command_is_dry_without_yes(storage: Storage, photos: Path) -> None:
    leave(photos, "bob")
    asked = ["retention", "--output", storage.uri, "--input", str(photos), "--gone"]
    before = keys(storage)
    dry = CliRunner().invoke(main, asked)
    assert (dry.exit_code, keys(storage)) == (0, before)
    assert dry.output.splitlines() == [
        "would delete: bob: left the input; 2 photos, 0.0 MB, with its records",
        "1 identities, 2 photos; nothing was deleted: --yes deletes",
    ]
    done = CliRunner().invoke(main, [*asked, "--yes", "--json"])
    (one,) = json.loads(done.output)["identities"]
    assert (one["identity"], one["photos"], one["forgotten"]) == ("bob", 2, True)
    assert "done/bob.json" not in keys(storage)
    for wrong in (["retention", "--gone"], ["retention", "--output", storage.uri]):
        assert CliRunner().invoke(main, wrong).exit_code == 2
