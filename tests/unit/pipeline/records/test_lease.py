"""Lease: one driver at a time, by the storage's clock; what is not renewed or belongs to a dead process is taken."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dladiff.errors import StorageError
from pipeline.records import lease
from pipeline.records.lease import Lease
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

HELD = {"owner": "x", "host": "elsewhere", "pid": 1, "time": "t"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"), create=True)


def age(storage: Storage, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(storage.uri_of("lock.json"), (then, then))


def test_a_second_driver_is_refused_and_the_lease_is_given_back(storage: Storage) -> None:
    with Lease(storage), pytest.raises(StorageError, match=f"another run.*pid {os.getpid()}"), Lease(storage):
        pass
    assert storage.tag("lock.json") is None


def test_only_what_was_not_renewed_is_taken_over(storage: Storage) -> None:
    storage.put("lock.json", json.dumps(HELD).encode())
    age(storage, lease.MISSED_S - 10)
    with pytest.raises(StorageError, match="host elsewhere, pid 1"), Lease(storage):
        pass
    age(storage, lease.LEASE_S + 20)
    with Lease(storage):
        assert json.loads(storage.get("lock.json"))["pid"] == os.getpid()


def test_a_lease_that_nobody_renews_is_waited_for(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    storage.put("lock.json", json.dumps(HELD).encode())
    age(storage, lease.LEASE_S - 1)
    with Lease(storage):
        assert json.loads(storage.get("lock.json"))["pid"] == os.getpid()
    assert "waiting for the lease of a run that no longer renews it" in caplog.text and "host elsewhere" in caplog.text


def test_a_holder_that_renews_late_keeps_its_lease(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def renewed(_: float) -> None:
        age(storage, 0)

    storage.put("lock.json", json.dumps(HELD).encode())
    age(storage, lease.MISSED_S + 5)
    monkeypatch.setattr(time, "sleep", renewed)
    with pytest.raises(StorageError, match="another run writes"), Lease(storage):
        pass
    assert json.loads(storage.get("lock.json"))["owner"] == "x"


@pytest.mark.parametrize("back", [True, False])
def test_a_lease_not_renewed_for_its_length_is_renewed_or_lost(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    with Lease(storage) as held:
        monkeypatch.setattr(lease, "LEASE_S", -1.0 if not back else 0.2)
        if back:
            time.sleep(0.3)
            held.check()  # the storage is there again, and the lock still ours
        else:  # as if the storage refused: no renewal is recent enough
            with pytest.raises(StorageError, match="or may have; nothing is lost"):
                held.check()


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_drivers_clock_does_not_matter(storage: Storage, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    storage.put("lock.json", json.dumps(HELD).encode())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    with pytest.raises(StorageError, match="another run"), Lease(storage):
        pass


def test_a_note_that_is_no_json_ages_like_any_other(storage: Storage) -> None:
    storage.put("lock.json", b"\xff")
    with pytest.raises(StorageError, match=r"another run .*: its lock\.json does not say who"), Lease(storage):
        pass
    age(storage, lease.LEASE_S + 1)
    with Lease(storage):
        pass


def test_a_dead_process_of_this_host_is_taken_over_at_once(storage: Storage) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    storage.put("lock.json", json.dumps(HELD | {"host": socket.gethostname(), "pid": gone.pid}).encode())
    with Lease(storage):
        pass


def test_the_loser_of_a_take_over_gets_an_error(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    with Lease(storage) as held:
        held.check()
        storage.put("lock.json", json.dumps(HELD).encode())
        deadline = time.monotonic() + 10
        while not held.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(StorageError, match="took it over"):
            held.check()
    assert json.loads(storage.get("lock.json"))["owner"] == "x"
