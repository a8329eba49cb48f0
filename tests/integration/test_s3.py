"""S3Storage against a real server: the same promises as the local folder, and errors that say what to do."""

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.response import StreamingBody

from dladiff.errors import NotFoundError, StorageError
from pipeline.storage import s3 as s3_storage
from pipeline.storage.s3 import S3Storage

pytestmark = pytest.mark.ray


@pytest.fixture
def s3(s3_uri: str) -> Iterator[S3Storage]:
    storage = S3Storage(s3_uri)
    yield storage
    storage.close()


def test_put_get_tag_delete(s3: S3Storage) -> None:
    data = bytes(range(256)) * 4000
    s3.put("photos/a b/ä😀+%.png", data, content_type="image/png")
    assert s3.get("photos/a b/ä😀+%.png") == data
    assert s3.tag("photos/a b/ä😀+%.png") == hashlib.md5(data, usedforsecurity=False).hexdigest()
    (entry,) = s3.list()
    assert (entry.key, entry.size, entry.tag) == ("photos/a b/ä😀+%.png", len(data), s3.tag(entry.key))
    s3.delete(entry.key)
    s3.delete(entry.key)
    assert s3.tag(entry.key) is None
    with pytest.raises(StorageError, match="no such object"):
        s3.get(entry.key)


def test_list_is_by_string_prefix(s3: S3Storage) -> None:
    keys = ["a/1", "a.jpg", "a-b/2", "a/b/3", "Z", "a0", "b/.tmp-1"]
    for key in keys:
        s3.put(key, b"1")
    assert sorted(e.key for e in s3.list()) == sorted(keys[:-1])
    assert sorted(e.key for e in s3.list("a/")) == ["a/1", "a/b/3"]
    assert [e.key for e in s3.list("none/")] == []
    beside = S3Storage(s3.uri + "x")  # a neighbour whose name begins alike is not ours
    beside.put("foreign", b"1")
    assert "foreign" not in [e.key for e in s3.list()]
    beside.close()


def test_more_than_one_page(s3: S3Storage) -> None:
    keys = [f"k{i:04}" for i in range(1005)]  # a page holds 1000 keys

    def put(part: list[str]) -> None:
        for key in part:
            s3.put(key, b"")

    threads = [threading.Thread(target=put, args=(keys[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.key for e in s3.list()] == keys


@pytest.mark.parametrize("kind", ["absent", "match"])
def test_one_of_16_writers_wins(s3: S3Storage, kind: str) -> None:
    tag = ""
    if kind == "match":
        s3.put("k", b"first")
        tag = s3.tag("k") or ""
    winners: list[bytes] = []
    barrier = threading.Barrier(16)

    def write(data: bytes) -> None:
        own = S3Storage(s3.uri)
        barrier.wait()
        if own.put_if_absent("k", data) if kind == "absent" else own.put_if_match("k", data, tag):
            winners.append(data)
        own.close()

    threads = [threading.Thread(target=write, args=(f"{i}".encode(),)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == [s3.get("k")]


def test_match_of_a_missing_or_changed_object_is_false(s3: S3Storage) -> None:
    assert not s3.put_if_match("none", b"x", "0" * 32)
    assert s3.tag("none") is None
    s3.put("k", b"1")
    old = s3.tag("k") or ""
    s3.put("k", b"2")
    assert not s3.put_if_match("k", b"3", old)
    assert s3.get("k") == b"2"


@pytest.mark.parametrize("status", [500, 503])
def test_a_lost_reply_does_not_lose_the_win(s3: S3Storage, status: int) -> None:
    """The server stored the object, its reply was lost, boto3 tried again and met its own object."""
    calls: list[int] = []

    def break_first(response_dict: dict[str, object], **_: object) -> None:
        if not calls:
            response_dict["status_code"] = status
            response_dict["body"] = b""
        calls.append(status)

    events = s3._client().meta.events
    events.register("before-parse.s3.PutObject", break_first)
    assert s3.put_if_absent("k", b"ours")
    assert len(calls) == 2
    assert not s3.put_if_absent("k", b"theirs")
    assert s3.get("k") == b"ours"


def test_a_reply_that_breaks_off_is_read_again(s3: S3Storage) -> None:
    s3.put("k", b"whole")
    broken: list[int] = []

    def cut(parsed: dict[str, Any], **_: object) -> None:
        if len(broken) < 2:
            parsed["Body"] = StreamingBody(io.BytesIO(b"who"), content_length=5)
            broken.append(1)

    s3._client().meta.events.register("after-call.s3.GetObject", cut)
    assert s3.get("k") == b"whole"
    assert len(broken) == 2


def test_errors_are_one_line(s3: S3Storage, monkeypatch: pytest.MonkeyPatch, s3_endpoint: str) -> None:
    with pytest.raises(StorageError, match="no such bucket: missing-bucket; create it"):
        list(S3Storage("s3://missing-bucket/p").list())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrongsecret")
    with pytest.raises(StorageError, match=r"access denied .* check the credentials") as caught:
        S3Storage(s3.uri).get("k")
    assert "wrongsecret" not in str(caught.value) and "testkey" not in str(caught.value)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StorageError, match="no S3 credentials; set AWS_ACCESS_KEY_ID"):
        S3Storage(s3.uri).get("k")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot reach http://127.0.0.1:9 .* check the network"):
        S3Storage(s3.uri).get("k")


def test_a_file_of_any_size_is_put_whole(s3: S3Storage, tmp_path: Path) -> None:
    for size in (0, 9 * 2**20):  # boto3 sends 8 MiB and more in parts
        file = tmp_path / str(size)
        file.write_bytes(bytes(range(256)) * (size // 256))
        s3.put_file("big", file)
        assert s3.get("big") == file.read_bytes()


def test_a_large_object_comes_in_parts(s3: S3Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_storage, "PART", 1 << 20)
    data = b"".join(i.to_bytes(4, "big") for i in range(700_000))
    s3.put("large", data)
    broken: list[int] = []

    def cut(parsed: dict[str, Any], **_: object) -> None:
        if not broken:
            parsed["Body"] = StreamingBody(io.BytesIO(b"who"), content_length=5)
            broken.append(1)

    s3._client().meta.events.register("after-call.s3.GetObject", cut)
    s3.get_file("large", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    assert broken


def test_age_is_by_the_servers_clock(s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3.age("lock") is None
    s3.put("lock", b"x")
    first = s3.age("lock")
    assert first is not None and first >= 0
    time.sleep(2.1)
    later = s3.age("lock")
    assert later is not None and later >= first + 1


def test_what_is_missing_has_an_error_of_its_own(s3: S3Storage) -> None:
    with pytest.raises(NotFoundError, match="no such object"):
        s3.get("nothing")


def test_objects_are_kept_as_configured(s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = S3Storage(s3.uri, {"server_side_encryption": "AES256", "storage_class": "STANDARD_IA"})
    sent: list[dict[str, Any]] = []

    class Recording:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **values: sent.append(values)

    monkeypatch.setattr(kept, "_made", Recording())
    kept.put("a", b"")
    kept.put_if_absent("b", b"")
    assert [(v["ServerSideEncryption"], v["StorageClass"]) for v in sent] == [("AES256", "STANDARD_IA")] * 2
