"""Temporary folders: private, gone at the end, and removed by the next call when their process was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.process import temporary
from pipeline.process.temporary import temporary_folder
from pipeline.storage.open import open_storage

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.process.temporary import temporary_folder
with temporary_folder(parent=Path(sys.argv[1])) as folder:
    (folder / "photo.png").write_bytes(b"somebody")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "dies" else sys.stdin.read()
"""


def started(place: Path, how: str) -> "tuple[subprocess.Popen[str], Path]":
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def ended(process: "subprocess.Popen[str]") -> None:
    process.communicate(timeout=60)


def test_it_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with temporary_folder(parent=tmp_path) as folder:
        assert folder.parent == tmp_path and folder.name.startswith(f"dladiff-{os.getpid()}-")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_the_next_call_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    process, folder = started(tmp_path, "dies")
    ended(process)
    assert process.returncode == -signal.SIGKILL
    assert (folder / "photo.png").exists()
    with temporary_folder(prefix="other-", parent=tmp_path):
        assert folder.exists()  # another prefix is not its business
    with temporary_folder(parent=tmp_path):
        assert not folder.exists()


def test_a_living_process_keeps_its_folder(tmp_path: Path) -> None:
    process, folder = started(tmp_path, "lives")
    with temporary_folder(parent=tmp_path) as own, temporary_folder(parent=tmp_path):
        assert own.exists() and (folder / "photo.png").exists()
    ended(process)
    assert list(tmp_path.iterdir()) == []


def test_a_pid_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    stale = tmp_path / f"dladiff-{os.getpid()}-1-abcdefgh"
    stale.mkdir()
    with temporary_folder(parent=tmp_path):
        assert not stale.exists()


def test_a_lock_keeps_the_folder_of_a_process_of_another_container(tmp_path: Path) -> None:
    with temporary_folder(parent=tmp_path) as folder:
        foreign = folder.rename(tmp_path / "dladiff-4194305-1-abcdefgh")  # no process here has this pid
        with temporary_folder(parent=tmp_path):
            assert foreign.exists()
    with temporary_folder(parent=tmp_path):
        assert not foreign.exists()


def test_links_other_names_and_other_users_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_bytes(b"x")
    gone = "4194305-1-abcdefgh"
    (tmp_path / f"dladiff-{gone}").symlink_to(target)
    for name in ("dladiff-notes", "dladiff-1-2-short", f"mine-dladiff-{gone}"):
        (tmp_path / name).mkdir()
    (tmp_path / f"dladiff-{gone[:-1]}x").write_bytes(b"a file")
    before = sorted(tmp_path.rglob("*"))
    with temporary_folder(parent=tmp_path):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    theirs = tmp_path / f"dladiff-{gone[:-1]}y"
    theirs.mkdir()
    monkeypatch.setattr(temporary.os, "geteuid", lambda: os.getuid() + 1)  # type: ignore[attr-defined]
    with temporary_folder(parent=tmp_path):
        assert theirs.exists()


def test_without_proc_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_start_of", lambda pid: None)
    young, old = (tmp_path / f"dladiff-4194305-0-abcdefg{c}" for c in "yo")
    living = tmp_path / f"dladiff-{os.getpid()}-0-abcdefgh"
    for folder in (young, old, living):
        folder.mkdir()
    for folder in (old, living):
        os.utime(folder, (0, time.time() - 2 * temporary.STALE_S))
    with temporary_folder(parent=tmp_path):
        assert (young.exists(), old.exists(), living.exists()) == (True, False, True)


def test_a_short_one_leaves_room_for_the_path_of_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 80)))
    with temporary_folder(short=True) as folder:
        assert len(str(folder)) <= 35
        session = folder / "session_2026-07-01_01-02-03_123456_1234567" / "sockets" / "plasma_store"
        assert len(str(session)) < 107


def test_it_can_be_storage(tmp_path: Path) -> None:
    with temporary_folder(parent=tmp_path) as folder:
        storage = open_storage(folder)
        assert list(storage.list()) == []
        assert storage.put_if_absent("a", b"1")
        assert storage.put_if_match("a", b"2", storage.tag("a") or "")  # the folder itself is not locked
