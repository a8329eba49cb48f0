"""storage: whole writes, one winner, links and hostile keys refused, every error one line that says what to do."""

import errno
import os
import resource
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dladiff.errors import NotFoundError, StorageError, TooLargeError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from pipeline.storage.s3 import S3Storage


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "root", create=True)


def files_under(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_put_get_tag_delete(local: Storage, tmp_path: Path) -> None:
    local.put("a/b.bin", b"one", content_type="image/png")
    assert local.get("a/b.bin") == b"one" == (tmp_path / "root/a/b.bin").read_bytes()
    info = (tmp_path / "root/a/b.bin").stat()
    assert local.tag("a/b.bin") == f"3-{info.st_mtime_ns}"
    assert local.uri_of("a/b.bin") == str(tmp_path / "root/a/b.bin")
    local.delete("a/b.bin")
    local.delete("a/b.bin")
    assert local.tag("a/b.bin") is None
    assert files_under(tmp_path / "root") == []


def test_delete_leaves_no_empty_folder_with_a_person_s_name(local: Storage, tmp_path: Path) -> None:
    for key in ("starts/Ann/1", "starts/Ann/deep/2", "starts/Bob/1"):
        local.put(key, b"x")
    local.delete("starts/Ann/deep/2")
    assert sorted(p.name for p in (tmp_path / "root/starts").rglob("*")) == ["1", "1", "Ann", "Bob"]
    local.delete("starts/Ann/1")
    assert sorted(p.name for p in (tmp_path / "root/starts").rglob("*")) == ["1", "Bob"]
    local.delete("starts/Bob/1")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_folder_that_one_empties_is_there_for_another(local: Storage) -> None:
    def write_and_delete(i: int) -> None:
        for n in range(200):
            local.put(f"a/b/{i}-{n}", b"x")
            local.delete(f"a/b/{i}-{n}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_delete, range(4)))


def test_get_file_copies_out(local: Storage, tmp_path: Path) -> None:
    local.put("a/b.bin", b"one")
    local.get_file("a/b.bin", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"one"
    with pytest.raises(StorageError, match="no such file"):
        local.get_file("a/c.bin", tmp_path / "there")


def test_two_quick_writes_of_one_size_have_two_tags(local: Storage) -> None:
    tags = set()
    for _ in range(20):
        local.put("k", b"x")
        tags.add(local.tag("k"))
    assert len(tags) == 20


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a\\b", "a\0b", "", "a//b"])
def test_keys_that_leave_the_prefix_are_refused(local: Storage, key: str) -> None:
    s3 = S3Storage("s3://bucket/p")
    for storage in (local, s3):
        for call in (
            lambda s: s.get(key),
            lambda s: s.put(key, b""),
            lambda s: s.put_if_absent(key, b""),
            lambda s: s.put_if_match(key, b"", "t"),
            lambda s: s.tag(key),
            lambda s: s.delete(key),
            lambda s: s.uri_of(key),
        ):
            with pytest.raises(StorageError, match="refused key"):
                call(storage)


def race(count: int, attempt: Callable[[int], bool]) -> list[int]:
    winners: list[int] = []
    barrier = threading.Barrier(count)

    def run(index: int) -> None:
        barrier.wait()
        if attempt(index):
            winners.append(index)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


@pytest.mark.parametrize("links", [True, False])
def test_put_if_absent_has_one_winner(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    winners = race(16, lambda i: local.put_if_absent("done/a.json", f"{i:02}".encode()))
    assert len(winners) == 1
    assert local.get("done/a.json") == f"{winners[0]:02}".encode()
    assert [e.key for e in local.list()] == ["done/a.json"]
    assert [f for f in files_under(tmp_path / "root") if ".tmp-" in f] == []


def test_put_if_match_has_one_winner(local: Storage) -> None:
    local.put("lock.json", b"--")
    tag = local.tag("lock.json")
    assert tag
    winners = race(16, lambda i: local.put_if_match("lock.json", f"{i:02}".encode(), tag))
    assert len(winners) == 1
    assert local.get("lock.json") == f"{winners[0]:02}".encode()
    assert not local.put_if_match("absent", b"", tag)
    assert local.tag("absent") is None


@pytest.mark.parametrize("name", ["fsync", "replace", "link", "write"])
def test_a_full_disk_leaves_no_half_object(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    local.put("old", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if name == "replace":
        monkeypatch.setattr(Path, "replace", full)
    elif name == "write":  # the kernel itself stops the write half way
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    else:
        monkeypatch.setattr(os, name, full)
    try:
        with pytest.raises(StorageError, match=r"disk full: .* free some space"):
            if name == "link":
                local.put_if_absent("new", b"new")
            else:
                local.put("old", b"new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert files_under(tmp_path / "root") == ["old"]
    assert local.get("old") == b"old"


def test_missing_folder_and_file_in_place(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no such folder: .*/none; check the address"):
        open_storage(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="not a folder"):
        open_storage(tmp_path / "file")
    with pytest.raises(StorageError, match="choose another folder"):
        open_storage(tmp_path / "file", create=True)
    with pytest.raises(StorageError, match="choose another folder"):
        open_storage(tmp_path / "file/below", create=True)
    storage = open_storage(tmp_path)
    with pytest.raises(StorageError, match="choose another folder"):
        storage.put("file/below", b"")
    with pytest.raises(StorageError, match="no such file"):
        storage.get("none")
    assert storage.tag("file/below") is None


def test_a_sparse_file_is_refused_before_it_is_read(local: Storage, tmp_path: Path) -> None:
    local.put("small", b"1234")
    with (tmp_path / "root/large").open("wb") as handle:
        handle.truncate(3 * 2**30)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + 2**28, limits[1]))  # no room for 3 GiB
    try:
        refuse_large(local)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def refuse_large(local: Storage) -> None:
    with pytest.raises(TooLargeError, match=r"large has more than 2147483648 bytes; make it smaller"):
        local.get("large")
    assert local.get("small", 4) == b"1234"
    with pytest.raises(TooLargeError, match="has more than 3 bytes"):
        local.get("small", 3)


def test_a_file_that_grows_while_it_is_read_is_cut_at_the_limit(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("k", b"1234")
    monkeypatch.setattr(os, "fstat", lambda number: os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, 2, 0, 0, 0)))
    assert local.get("k") == b"1234"
    with pytest.raises(TooLargeError):
        local.get("k", 3)


def test_a_pipe_in_the_place_of_a_file_does_not_wait_for_a_writer(local: Storage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root/pipe.jpg")
    with pytest.raises(NotFoundError):
        local.get("pipe.jpg")
    with pytest.raises(NotFoundError):
        local.get_file("pipe.jpg", tmp_path / "copy")
