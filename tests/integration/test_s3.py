"""S3Storage against a real server: the same promises as the local folder, and errors that say what to do."""

import hashlib
import io
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.response import StreamingBody

from dladiff.diffusion.bundle import damage, read_pins
from dladiff.errors import ModelError, NotFoundError, StorageError
from pipeline.models.fetch import mirror, on_this_machine
from pipeline.models.fingerprint import fingerprint_model
from pipeline.sources import index_file, shards
from pipeline.sources.addresses import read_allowed
from pipeline.sources.find import find_identities
from pipeline.sources.index_file import index_identities
from pipeline.sources.kinds import LOOK
from pipeline.sources.left_out import LeftOut
from pipeline.sources.originals import named
from pipeline.storage import s3 as s3_storage
from pipeline.storage.s3 import S3Storage
from tests.support.photo_bytes import flat_photo

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


def test_an_index_names_objects_and_one_wrong_bucket_ends_nothing(
    s3: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "PAGE", 3)  # the photo of "many" is not among its first
    for number in range(5):
        s3.put(f"many/{number}.jpg", b"1")
    s3.put("many/9.jpg", b"123")
    s3.put("few/1.jpg", b"12")
    rows = ["many/9.jpg", "few/1.jpg", "few/gone.jpg", "s3://missing-bucket/1.jpg", "/etc/passwd"]
    s3.put("index.csv", "\n".join(["identity,uri", *(f"ann,{row}" for row in rows)]).encode())
    (ann,) = index_identities(s3.uri_of("index.csv"))
    tag = hashlib.md5(b"123", usedforsecurity=False).hexdigest()
    assert {p.uri: (p.size, p.tag) for p in ann.photos if p.size} == {
        s3.uri_of("many/9.jpg"): (3, tag),
        s3.uri_of("few/1.jpg"): (2, s3.tag("few/1.jpg")),
    }
    assert len(ann.photos) == 5
    assert [p.uri for p in ann.photos if p.tag.startswith("refused: ")] == ["/etc/passwd"]
    (allowed,) = index_identities(s3.uri_of("index.csv"), ["/etc"])  # an index in a bucket has no folder here
    assert [p.uri for p in allowed.photos if p.size and p.uri.startswith("/")] == ["/etc/passwd"]


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


def test_identities_from_a_bucket(s3: S3Storage) -> None:
    for key in ("103/set_A_1.jpg", "103/set_B_2.jpg", "ann/1.jpg", "top.jpg"):
        s3.put(key, b"x")
    found = list(find_identities(s3))
    assert [(i.name, len(i.photos), len(i.clean)) for i in found] == [("103", 1, 1), ("ann", 1, 0), ("top", 1, 0)]
    assert found[1].photos[0].uri == f"{s3.uri}/ann/1.jpg"


def test_only_a_part_of_an_object_is_read_to_see_what_it_is(s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("ann/photo", flat_photo(1) + bytes(100_000))
    s3.put("ann/notes", b"text")
    s3.put("ann/empty", b"")
    s3.put("ann/1.jpg", flat_photo(2))
    s3.put("ann/list.txt", b"text")
    asked = []
    s3._client().meta.events.register("before-call.s3.GetObject", lambda params, **_: asked.append(params["headers"]))
    left = LeftOut()
    (ann,) = find_identities(s3, left=left)
    assert [photo.key for photo in ann.photos] == ["ann/1.jpg", "ann/photo"]
    assert (left.counts(), left.unknown) == ({"not_photos": 3, "hidden": 0, "unread": 0}, 2)
    assert [headers["Range"] for headers in asked] == [f"bytes=0-{LOOK - 1}"] * 2
    assert s3.part("ann/photo", 4, 10) == flat_photo(1)[4:14]
    with pytest.raises(NotFoundError):
        s3.part("ann/2.jpg", 0, 10)


def test_photos_inside_of_files_in_a_bucket(s3: S3Storage) -> None:
    table, shard = io.BytesIO(), io.BytesIO()
    pq.write_table(
        pa.table({"image": [flat_photo(n) for n in range(6)], "person": [1, 2] * 3}), table, row_group_size=2
    )
    s3.put("data/a.parquet", table.getvalue())
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name, data in (("7.cls", b"2"), ("7.jpg", flat_photo(7)), ("8.jpg", flat_photo(8))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    s3.put("data/b.tar", shard.getvalue())
    found = {one.name: one for one in find_identities(s3)}
    assert {name: len(one.photos) for name, one in found.items()} == {"1": 3, "2": 4, "8": 1}
    sources = named([s3.uri])
    for photo in (photo for one in found.values() for photo in one.photos):
        data = shards.read(s3, photo.key, 100_000, photo.tag)
        assert data == sources.read(photo.uri) and data.startswith(b"\x89PNG")
    (last,) = found["8"].photos
    assert last.uri == f"{s3.uri}/data/b.tar#member=8.jpg"
    alone = f"{s3.uri}/data/a.parquet"
    assert [one.name for one in index_identities(alone)] == ["1", "2"]
    assert read_allowed(f"{alone}#row=3", (), {}, tag=found["2"].photos[1].tag) == flat_photo(3)


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


def test_a_model_goes_to_a_bucket_and_comes_to_a_worker(
    s3: S3Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path / "models"))
    s3.put("there", b"1")
    uri = f"{s3.uri}/models/tiny"
    with pytest.raises(ModelError, match="dladiff models mirror"):
        fingerprint_model(uri)
    pins = mirror("embedded", uri)
    assert fingerprint_model(uri) == f"sha256:{pins.digest()}"
    settings = {"profile": "tiny", "preset": None, "overrides": {"model": uri}}
    folder = Path(on_this_machine(settings, S3Storage)["overrides"]["model"])
    assert read_pins(folder) == pins and damage(folder, pins) == {}
    missing = tmp_path / "missing"
    with pytest.raises(NotFoundError, match="no such object"):
        s3.get_file("nothing", missing)
    with pytest.raises(StorageError, match="check the disk"):
        s3.get_file("there", tmp_path / "no folder" / "file")


def test_originals_are_read_below_the_prefix_and_in_no_other_bucket(
    s3: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = S3Storage(s3.uri + "x")
    for storage in (s3, beside):
        storage.put("ann/1.png", b"photo")
    asked: list[str] = []
    real = S3Storage.get
    monkeypatch.setattr(S3Storage, "get", lambda own, key, limit=None: asked.append(key) or real(own, key, limit))
    sources = named([s3.uri])
    assert sources.read(s3.uri_of("ann/1.png")) == b"photo"
    assert sources.photos(f"{s3.uri}/ann") == [(s3.uri_of("ann/1.png"), s3.tag("ann/1.png"))]
    foreign = (beside.uri_of("ann/1.png"), "s3://foreign/ann/1.png", f"{s3.uri}/../x", f"{s3.uri}//ann/1.png", s3.uri)
    for uri in foreign:
        with pytest.raises(StorageError, match=r"outside of the input|refused key"):
            sources.read(uri)
    assert [key for key in asked if key not in ("../x", "/ann/1.png")] == ["ann/1.png"]
    with pytest.raises(StorageError, match="more than 3 bytes"):
        sources.read(s3.uri_of("ann/1.png"), 3)
    opened: list[Any] = [beside, *sources.roots.values()]
    for one in opened:
        one.close()
