"""A server that never ends: every listing and every body is cut off by a limit, with one line."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from dladiff.errors import BusyError, StorageError, TooLargeError
from pipeline.storage import s3 as s3_storage
from pipeline.storage import s3_listing
from pipeline.storage.base import Storage
from pipeline.storage.retry import PatientStorage
from pipeline.storage.s3 import S3Storage
from tests.support.hostile_server import HostileServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    with HostileServer() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        yield running


@pytest.fixture
def s3(server: HostileServer) -> Iterator[S3Storage]:
    storage = S3Storage("s3://bucket")
    yield storage
    storage.close()


@pytest.mark.parametrize(("prefix", "pages"), [("same", 2), ("alternating", 3)])
def test_a_page_that_comes_again_ends_the_listing(
    s3: S3Storage, server: HostileServer, prefix: str, pages: int
) -> None:
    with pytest.raises(StorageError, match=r"does not end: http://127.0.0.1:\d+ sends a page again .*; check the serv"):
        list(s3.list(f"{prefix}/"))
    assert server.pages == pages


@pytest.mark.parametrize(
    ("prefix", "limit", "line"),
    [("empty", "MAX_EMPTY_PAGES", "sent 6 pages in a row without an object"), ("endless", "MAX_PAGES", "sent 5 pages")],
)
def test_pages_without_end_end_at_a_limit(
    s3: S3Storage, server: HostileServer, monkeypatch: pytest.MonkeyPatch, prefix: str, limit: str, line: str
) -> None:
    monkeypatch.setattr(s3_listing, limit, 5)
    with pytest.raises(StorageError, match=line):
        list(s3.list(f"{prefix}/"))
    assert server.pages in (5, 6)


def test_an_object_of_no_size_is_skipped(s3: S3Storage, caplog: pytest.LogCaptureFixture) -> None:
    assert [(e.key, e.size) for e in s3.list("sizes/")] == [("sizes/c", 5)]
    assert caplog.messages == [f"skipped sizes/{key}: its size is no size" for key in "ab"]


def test_an_answer_without_a_tag_is_one_line(s3: S3Storage) -> None:
    with pytest.raises(StorageError, match="answers without 'ETag' at s3://bucket, which S3 always sends"):
        list(s3.list("untagged/"))


def test_a_promised_exabyte_is_refused_at_once(s3: S3Storage, server: HostileServer, tmp_path: Path) -> None:
    with pytest.raises(TooLargeError, match="has more than 2147483648 bytes"):
        s3.get("promised")
    assert server.sent <= 1
    with pytest.raises(StorageError, match=r"disk full: .* free some space"):
        s3.get_file("promised", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["chunked", "unknown"])
def test_a_body_without_a_length_is_cut_at_the_limit(s3: S3Storage, server: HostileServer, name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="has more than 3000000 bytes"):
            s3.get(name, 3_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("to_file", [False, True])
def test_a_body_that_trickles_is_given_up_and_tried_again(
    s3: S3Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, to_file: bool
) -> None:
    monkeypatch.setattr(s3_storage, "GRACE_S", 0.2)
    file = tmp_path / "file"

    def read(storage: Storage) -> None:
        storage.get_file("trickle", file) if to_file else storage.get("trickle")

    with pytest.raises(BusyError, match=r"comes too slowly \(\d+ bytes in \d+ s\); check the network"):
        read(s3)

    class TriedAgainError(Exception): ...

    def retried() -> None:
        raise TriedAgainError

    with pytest.raises(TriedAgainError):
        read(PatientStorage(s3, 3600, retried))


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 5500])
def test_a_download_in_parts_is_whole(
    s3: S3Storage, server: HostileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    monkeypatch.setattr(s3_storage, "PART", 1000)
    server.objects["large"] = bytes(i % 251 for i in range(size))
    s3.get_file("large", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.objects["large"]


def test_a_server_that_ignores_ranges_is_refused(
    s3: S3Storage, server: HostileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_storage, "PART", 1000)
    server.objects["whole"] = b"x" * 5000
    with pytest.raises(StorageError, match="more than 1000 bytes"):
        s3.get_file("whole", tmp_path / "file")
