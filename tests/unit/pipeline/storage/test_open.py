"""Addresses of storage: which are opened, and the one line of the others."""

from pathlib import Path

import pytest

from dladiff.errors import StorageError
from pipeline.storage.open import address_fault, open_storage
from pipeline.storage.s3 import S3Storage


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
