"""Records: who wins a commit, what counts as a start, who holds the lease, and Parquet from records alone."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dladiff.errors import StorageError
from pipeline import manifest
from pipeline.storage import Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"), create=True)


def record(key: str, run: str = "r") -> manifest.Record:
    row = {"identity": "a/b", "run_id": run, "status": "done", "started_at": manifest.now(), "seconds": {"read": 0.5}}
    return {"identity": "a/b", "key": key, "run_id": run, "photos": [row | {"linf": 0.01}], "identity_row": row}


def test_first_commit_of_a_key_wins_and_a_new_key_replaces(storage: Storage) -> None:
    assert manifest.commit(storage, record("k", "one"))
    assert not manifest.commit(storage, record("k", "two"))
    assert manifest.load_records(storage).done["a/b"]["run_id"] == "one"
    assert manifest.commit(storage, record("other", "three"))
    records = manifest.load_records(storage)
    assert records.done["a/b"]["run_id"] == "three"
    assert manifest.commit(storage, record("other", "four"), replaces=records.tags["a/b"])


def test_key_depends_on_name_tags_and_settings_not_on_order() -> None:
    tags = [("1.png", "x"), ("2.png", "y")]
    key = manifest.key_of("a", tags, "d")
    assert key == manifest.key_of("a", tags[::-1], "d")
    assert (
        len({key, manifest.key_of("b", tags, "d"), manifest.key_of("a", tags, "e"), manifest.key_of("a", [], "d")}) == 4
    )


def test_starts_count_by_key(storage: Storage) -> None:
    manifest.write_start(storage, "a/b", "k")
    manifest.write_start(storage, "a/b", "k")
    manifest.write_start(storage, "a/b", "other")
    assert manifest.count_starts(storage, "a/b", "k") == 2
    manifest.clear_starts(storage, "a/b")
    assert manifest.count_starts(storage, "a/b", "k") == 0


def test_manifest_round_trip_and_failures_stand_for_newer_work(storage: Storage) -> None:
    import io

    import pyarrow.parquet as pq

    manifest.commit(storage, record("k"))
    assert manifest.write_manifest(storage) == (1, 1)
    (row,) = pq.read_table(io.BytesIO(storage.get("manifest/photos.parquet"))).to_pylist()
    assert (row["identity"], row["linf"], row["seconds"]) == ("a/b", 0.01, [("read", 0.5)])
    assert row["started_at"].utcoffset().total_seconds() == 0
    for attempts in (1, 2):
        manifest.fail(storage, record("new") | {"status": "failed", "reason": "x"})
        assert manifest.load_records(storage).failed["a/b"]["attempts"] == attempts
    assert manifest.write_manifest(storage) == (1, 1)


def test_lease_is_exclusive_expires_and_is_given_back(storage: Storage) -> None:
    with manifest.Lease(storage), pytest.raises(StorageError, match="another run"), manifest.Lease(storage):
        pass
    assert storage.tag("lock.json") is None
    held = {"owner": "x", "host": "elsewhere", "pid": 1, "time": "t", "expires": time.time() + 60}
    storage.put("lock.json", json.dumps(held).encode())
    with pytest.raises(StorageError, match="host elsewhere, pid 1"), manifest.Lease(storage):
        pass
    storage.put("lock.json", json.dumps(held | {"expires": time.time() - 1}).encode())
    with manifest.Lease(storage):
        assert json.loads(storage.get("lock.json"))["pid"] == os.getpid()


def test_lease_of_a_dead_process_of_this_host_is_taken_over(storage: Storage) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held = {"owner": "x", "host": socket.gethostname(), "pid": gone.pid, "time": "t", "expires": time.time() + 60}
    storage.put("lock.json", json.dumps(held).encode())
    with manifest.Lease(storage):
        pass
