"""What a listing of a local folder holds, what it skips, and what it says about that."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dladiff.errors import StorageError
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "root", create=True)


def files_under(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


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


def test_what_is_no_file_is_logged_even_in_a_quiet_run(
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
