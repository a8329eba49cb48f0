"""Index files that name objects of buckets: what is listed for them, and whose fault a bucket is that is not there."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dladiff.errors import BusyError, StorageError
from pipeline.sources import index_file
from pipeline.sources.find import Photo
from pipeline.sources.index_file import index_identities
from pipeline.storage.base import Entry, Storage
from pipeline.storage.open import open_storage
from tests.support.index_files import write


class Bucket:
    """The objects of s3://<name> under a prefix, sorted; notes its listings, and keys in `met` as they are given."""

    def __init__(self, uri: str, objects: dict[str, bytes], listed: list[str], met: list[str] | None = None) -> None:
        self.uri, self.objects, self.listed = uri, objects, listed
        self.met = [] if met is None else met

    def get(self, key: str, limit: int | None = None) -> bytes:
        return self.objects[self.uri_of(key)]

    def part(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def list(self, prefix: str = "", **_: Any) -> Iterator[Entry]:
        self.listed.append(self.uri_of(prefix))
        if self.uri == "s3://typo":
            raise StorageError("no such bucket: typo")
        if self.uri == "s3://busy":
            raise BusyError("S3 is overloaded")
        for uri, data in sorted(self.objects.items()):
            if uri.startswith(self.uri_of(prefix)):
                self.met.append(uri)
                yield Entry(uri.removeprefix(f"{self.uri}/"), len(data), "etag")


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_an_index_in_a_bucket_names_photos_of_several(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("ann", "a/1.jpg", ""), ("ann", "a/2.jpg", ""), ("ann", "s3://other/3.jpg", ""), ("bob", "b.jpg", "")]
    data = Path(write(tmp_path / name, rows)).read_bytes()
    objects = {f"s3://one/in/{name}": data} | dict.fromkeys(("s3://one/in/a/1.jpg", "s3://other/3.jpg"), b"12")
    objects |= dict.fromkeys(("s3://one/in/b.jpg", "s3://one/in/x/a/2.jpg", "s3://other/x/3.jpg"), b"123")
    listed: list[str] = []
    monkeypatch.setattr(index_file, "open_storage", lambda uri: Bucket(uri.rstrip("/"), objects, listed))
    ann, bob = index_identities(f"s3://one/in/{name}")
    assert ann.photos == (
        Photo("1.jpg", "s3://one/in/a/1.jpg", "etag", 2),
        Photo("2.jpg", "s3://one/in/a/2.jpg", "missing", 0),
        Photo("3.jpg", "s3://other/3.jpg", "etag", 2),
    )
    assert bob.photos == (Photo("b.jpg", "s3://one/in/b.jpg", "etag", 3),)
    own = [f"s3://one/in/{name}"] if name.endswith(".parquet") else []  # its size, to see if it holds photos
    assert listed == [*own, "s3://one/in/", "s3://one/in/a/", "s3://other/"]


def in_buckets(
    monkeypatch: pytest.MonkeyPatch, objects: dict[str, bytes], kind: type[Bucket] = Bucket
) -> tuple[list[str], list[str]]:
    """Let buckets hold these objects; return what is listed, and what the listings give."""
    listed, met = list[str](), list[str]()

    def opened(uri: str) -> Bucket | Storage:
        return kind(uri, objects, listed, met) if uri.startswith("s3://") else open_storage(uri)

    monkeypatch.setattr(index_file, "open_storage", opened)
    return listed, met


def test_a_bucket_that_cannot_be_listed_is_the_fault_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_buckets(monkeypatch, {"s3://one/1.jpg": b"12"})
    wrong, right = ("ann", "s3://typo/a/1.jpg", ""), ("bob", "s3://one/1.jpg", "")
    ann, bob = index_identities(write(tmp_path / "index.csv", [wrong, right]))
    assert ann.photos == (Photo("1.jpg", "s3://typo/a/1.jpg", "missing", 0),)
    assert bob.photos == (Photo("1.jpg", "s3://one/1.jpg", "etag", 2),)
    with pytest.raises(StorageError, match="no such bucket"):  # nothing at all could be looked at
        list(index_identities(write(tmp_path / "index.csv", [wrong])))
    with pytest.raises(BusyError, match="overloaded"):  # not for good
        list(index_identities(write(tmp_path / "index.csv", [right, ("ann", "s3://busy/1.jpg", "")])))


def test_of_a_large_folder_of_a_bucket_few_pages_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "PAGE", 10)
    objects = {f"s3://one/a/{number:03d}.jpg": b"1" for number in range(1000)}
    objects |= {"s3://one/a/900.jpg": b"123", "s3://one/a/900.jpg.bak": b"1", "s3://one/a/999.jpg/x.jpg": b"1"}
    listed, met = in_buckets(monkeypatch, objects)
    rows = [("ann", f"s3://one/a/{name}.jpg", "") for name in ("003", "900", "9999")]
    (ann,) = index_identities(write(tmp_path / "index.csv", rows))
    assert [(photo.key, photo.tag, photo.size) for photo in ann.photos] == [
        ("003.jpg", "etag", 1),
        ("900.jpg", "etag", 3),
        ("9999.jpg", "missing", 0),
    ]
    assert listed == ["s3://one/a/", "s3://one/a/900.jpg", "s3://one/a/9999.jpg"]
    assert len(met) == 3 * 10 + 1  # a page for each photo, and the one that came later
    del listed[:], met[:]
    assert len(list(index_identities(write(tmp_path / "index.csv", rows[:1])))) == 1
    assert (listed, met[-1]) == (["s3://one/a/"], "s3://one/a/003.jpg")


def test_keys_that_a_listing_skips_are_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Telling(Bucket):
        def list(self, prefix: str = "", *, log_skipped: bool = True, **_: Any) -> Iterator[Entry]:
            if log_skipped:
                logging.getLogger("pipeline.storage.s3").error("skipped %s", prefix)
            return super().list(prefix)

    in_buckets(monkeypatch, {"s3://one/a/1.jpg": b"12"}, Telling)
    index = write(tmp_path / "index.csv", [("ann", "s3://one/a/1.jpg", ""), ("ann", "s3://one/a/2.jpg", "")])
    assert [photo.tag for (ann,) in [index_identities(index)] for photo in ann.photos] == ["etag", "missing"]
    assert caplog.records == []
