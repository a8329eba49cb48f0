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
from hypothesis import given
from hypothesis import strategies as st

from dladiff.errors import NotFoundError, StorageError, TooLargeError
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import address_fault, open_storage
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


def test_list_is_sorted_by_whole_key_as_s3_sorts(local: Storage) -> None:
    keys = ["a/1", "a.jpg", "a-b/2", "a/b/3", "ä", "Z", "a0"]
    for key in keys:
        local.put(key, b"1234")
    assert [e.key for e in local.list()] == sorted(keys)
    assert all(e.size == 4 and e.tag == local.tag(e.key) for e in local.list())


@given(st.text(alphabet="ab/", max_size=5))
def test_a_prefix_is_a_string_prefix(tmp_path_factory: pytest.TempPathFactory, prefix: str) -> None:
    root = tmp_path_factory.getbasetemp() / "prefixes"
    storage = LocalStorage(root, create=True)
    keys = ["a/a", "a/b/a", "ab", "b/a", "bb/b"]
    for key in keys:
        storage.put_if_absent(key, b"")
    try:
        found = [e.key for e in storage.list(prefix)]
    except StorageError:
        assert "//" in prefix or prefix.startswith("/")
    else:
        assert found == [key for key in keys if key.startswith(prefix)]


def test_unfinished_writes_are_not_listed(local: Storage, tmp_path: Path) -> None:
    (tmp_path / "root/.tmp-123").write_bytes(b"half")
    (tmp_path / "root/.tmp-dir").mkdir()
    (tmp_path / "root/.tmp-dir/x").write_bytes(b"half")
    assert list(local.list()) == []


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


def test_links_out_of_the_folder_are_skipped_and_refused(
    local: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "id_rsa.jpg").write_bytes(b"private")
    root = tmp_path / "root"
    local.put("real.jpg", b"mine")
    (root / "out.jpg").symlink_to(secret / "id_rsa.jpg")
    (root / "outdir").symlink_to(secret)
    (root / "loop").symlink_to(root)
    (root / "self.jpg").symlink_to(root / "self.jpg")
    (root / "dangling.jpg").symlink_to(root / "nothing")
    (root / "inner.jpg").symlink_to(root / "real.jpg")
    assert [e.key for e in local.list()] == ["inner.jpg", "real.jpg"]
    assert "skipped out.jpg" in caplog.text
    for key in ("out.jpg", "outdir/id_rsa.jpg", "outdir/new.jpg", "self.jpg"):
        for call in (lambda k: local.get(k), lambda k: local.put(k, b"x"), lambda k: local.delete(k)):
            with pytest.raises(StorageError, match="a link leads out"):
                call(key)
    assert files_under(secret) == ["id_rsa.jpg"]


def test_names_that_are_no_keys_are_skipped_and_logged(
    local: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "root/a\\b.jpg").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path / "root") + b"/\xff.jpg")).write_bytes(b"")
    local.put("new\nline.jpg", b"")
    assert [e.key for e in local.list(log_skipped=False)] == ["new\nline.jpg"]
    assert caplog.records == []
    assert [e.key for e in local.list()] == ["new\nline.jpg"]
    assert len(caplog.records) == 2


def test_what_is_no_file_is_told_even_to_a_quiet_run(
    local: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "root/pipe.jpg")
    (tmp_path / "root/dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert list(local.list(log_skipped=False)) == list(local.list()) == []
    assert sorted(caplog.messages) == [
        "skipped dangling.jpg: it is a link to a folder, out of the input, or to nothing",
        "skipped pipe.jpg: it is no regular file",
    ]
    assert {record.levelname for record in caplog.records} == {"ERROR"}


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


def test_an_unreadable_folder_is_named(local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local.put("ann/1.jpg", b"")
    real = os.scandir

    def denied(path: Path) -> Any:
        if Path(path).name == "ann":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(StorageError, match=r"no permission to list .*/ann; check the owner"):
        list(local.list())


@pytest.mark.parametrize("uri", ["gs://b/p", "http://h/p", "file://host/p", "s3:///p", "s3://b/../c", ""])
def test_unknown_addresses_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=r"use|check"):
        open_storage(uri)


def test_a_file_uri_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    assert open_storage(f"{tmp_path.as_uri()}/a%20b").uri == str(tmp_path / "a b")


def test_an_s3_address_ends_without_a_slash() -> None:
    s3 = S3Storage("s3://bucket/a/b/")
    assert (s3.uri, s3.uri_of("k")) == ("s3://bucket/a/b", "s3://bucket/a/b/k")
    assert S3Storage("s3://bucket").uri_of("k") == "s3://bucket/k"


def deep_folder(top: Path, name: str = "d" * 200, depth: int = 25) -> int:
    """Nest folders until their path has more than 4096 characters; put a photo into the last; return that length."""
    folder = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open("deep.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    return depth * (len(name) + 1)


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_deeper_than_paths_reach_is_skipped(
    local: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: bool
) -> None:
    for key in ("ann/1.jpg", "zoe/1.jpg"):
        local.put(key, b"x")
    assert deep_folder(tmp_path / "root/ann") > 4096
    assert [e.key for e in local.list(whole=whole)] == ["ann/1.jpg", "zoe/1.jpg"]
    (line,) = caplog.messages
    assert "its path is longer than the system allows" in line and len(line) < 400


def denied(monkeypatch: pytest.MonkeyPatch, name: str, number: int = errno.EACCES) -> None:
    """Let folders of a name be unreadable, also to root."""
    real = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == name:
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_read_is_skipped_where_it_may_be(
    local: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("ann/1.jpg", "ann/sub/1.jpg", "bob/1.jpg"):
        local.put(key, b"x")
    denied(monkeypatch, "ann")
    assert [e.key for e in local.list(whole=False)] == ["bob/1.jpg"]
    assert caplog.messages == ["skipped ann/: it cannot be read (Permission denied); check its owner and mode"]
    with pytest.raises(StorageError, match="no permission to list"):
        list(local.list("ann/", whole=False))


def test_an_input_that_cannot_be_read_is_an_error(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("ann/1.jpg", b"x")
    denied(monkeypatch, "root")
    with pytest.raises(StorageError, match=r"no permission to list .*/root"):
        list(local.list(whole=False))
    monkeypatch.undo()
    (tmp_path / "root").rename(tmp_path / "away")
    with pytest.raises(StorageError, match="No such file or directory; check the disk"):
        list(local.list(whole=False))


@pytest.mark.parametrize("whole", [True, False])
def test_what_vanishes_while_it_is_listed_ends_nothing(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, whole: bool
) -> None:
    for key in ("a/1.jpg", "b.jpg", "c/1.jpg", "d.jpg"):
        local.put(key, b"x")
    listing = local.list(whole=whole)
    assert next(listing).key == "a/1.jpg"
    (tmp_path / "root/b.jpg").unlink()
    (tmp_path / "root/c/1.jpg").unlink()
    (tmp_path / "root/c").rmdir()
    assert [e.key for e in listing] == ["d.jpg"]
    assert caplog.messages == (
        [] if whole else [f"skipped {key}: it vanished while the folder was listed" for key in ("b.jpg", "c/")]
    )


def test_of_many_skipped_things_the_first_are_named_and_all_are_counted(
    local: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(25):
        (tmp_path / f"root/{number:02}.jpg").symlink_to(tmp_path / "nowhere")
    assert list(local.list()) == []
    assert len(caplog.messages) == 21
    assert caplog.messages[-1] == f"skipped 5 more in {tmp_path}/root, 25 in all"


def test_listing_deep_folders_resolves_no_path(local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "root"
    for _ in range(100):  # one resolution of each file would look at every folder above it
        folder /= "d"
        folder.mkdir()
        (folder / "1.jpg").write_bytes(b"x")
    monkeypatch.setattr(Path, "resolve", lambda *_: pytest.fail("a path was resolved"))
    assert len(list(local.list())) == 100


def test_of_a_chain_of_links_the_first_are_followed(local: Storage, tmp_path: Path) -> None:
    local.put("0.jpg", b"x")
    for number in range(1, 1200):
        (tmp_path / f"root/{number}.jpg").symlink_to(f"{number - 1}.jpg")
    assert {e.key for e in local.list(log_skipped=False)} == {
        f"{number}.jpg" for number in range(41)
    }  # as the system does
    with pytest.raises(StorageError):
        local.get("1199.jpg")


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


@pytest.mark.parametrize("uri", ["s3://AKIA:5ec/ret@bucket/x", "s3://5ecret@bucket", "s3://a:5ecret@b"])
def test_credentials_in_an_address_are_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(StorageError, match=r"s3://\*\*\*@b.* holds credentials; use s3://bucket/prefix") as caught:
        open_storage(uri)
    assert "5ec" not in str(caught.value)
    assert address_fault(uri) and "5ec" not in str(address_fault(uri))


@pytest.mark.parametrize("uri", ["s3://[bad/x", "s3://b%00/x", "s3://b ucket", "s3://"])
def test_an_address_that_is_no_bucket_is_one_line(uri: str) -> None:
    assert "use s3://bucket/prefix" in str(address_fault(uri))
    with pytest.raises(StorageError, match="use s3://bucket/prefix"):
        open_storage(uri)
