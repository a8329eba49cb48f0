"""Addresses in an index file that are refused: malformed, outside of the allowed folders, behind links."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dladiff.errors import ConfigError, StorageError
from pipeline.sources.addresses import OUTSIDE, read_allowed, roots_of
from pipeline.sources.index_file import index_identities
from pipeline.storage.base import Storage
from tests.support.index_files import found, photo_files, refused, write

PARTS = """it has an empty, "." or ".." part"""


SCHEME = "its scheme is unknown; use a path, file:// or s3://"


MALFORMED = {
    "../4.jpg": PARTS,
    "ftp://host/5.jpg": SCHEME,
    "http://[bad": SCHEME,
    "s3://": "s3:// names no bucket; use s3://bucket/prefix",
    "s3://bucket": "it is empty",
    "s3://[bad/1.jpg": "s3://[bad/1.jpg names no valid bucket; use s3://bucket/prefix",
    "file://%zz": "it names another host",
    "file://[bad/1.jpg": "it names another host",
    "file://host/6.jpg": "it names another host",
    "a\\b.jpg": "it holds a NUL or a backslash",
}


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_a_row_with_a_malformed_address_is_refused_and_the_others_go_on(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    photo_files(tmp_path, "1.jpg")
    index = write(tmp_path / name, [("ann", "1.jpg", ""), *(("bob", uri, "") for uri in MALFORMED)])
    assert refused(index) == MALFORMED
    assert found(index)["ann"] == [f"{tmp_path}/1.jpg"]
    assert all(record.levelname == "ERROR" for record in caplog.records)
    first, lines = 2 if name.endswith(".csv") else 1, caplog.messages[:6]
    assert lines[0] == f"{index}, row {first + 1}: uri '../4.jpg' is refused: {PARTS}"
    assert lines[5] == f"{index}: {len(MALFORMED) - 5} more faults"


def test_an_address_that_does_not_print_is_shown_by_its_row(tmp_path: Path) -> None:
    index = tmp_path / "index.parquet"
    photo_files(tmp_path, "1.jpg")
    uris = [b"1.jpg", b"nul\0.jpg", b"\xed\xb2\x80.jpg", b"\xff.jpg", b"/" + b"x" * 1_000_000, b"/" + b"x" * 999_999]
    column = pa.array(uris, pa.binary()).view(pa.string())  # as a writer that does not look at them leaves them
    pq.write_table(pa.table({"identity": ["ann"] * len(uris), "uri": column}), index)
    whole = f"/{'x' * 146}...{'x' * 50}"
    assert refused(str(index)) == {
        "nul\\x00.jpg (row 2)": "it holds a NUL or a backslash",
        "\\udced\\udcb2\\udc80.jpg (row 3)": "it is not UTF-8",
        "\\udcff.jpg (row 4)": "it is not UTF-8",
        f"{whole} (row 5)": "it has more than 4096 characters",
        f"{whole} (row 6)": "it has more than 4096 characters",
    }


def test_secrets_in_a_refused_address_are_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uris = ["https://bucket.s3.amazonaws.com/1.jpg?X-Amz-Credential=AKIA&X-Amz-Signature=5ec4e7", "s3://AK:5ec4e7@b/1"]
    index = write(tmp_path / "index.csv", [("ann", uri, "") for uri in uris])
    assert list(refused(index)) == [
        "https://bucket.s3.amazonaws.com/1.jpg?X-Amz-Credential=***&X-Amz-Signature=*** (row 2)",
        "s3://***@b/1 (row 3)",
    ]
    assert "5ec4e7" not in caplog.text + str(refused(index))


def test_local_files_are_named_only_below_the_index_and_the_allowed_roots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo_files(tmp_path / "in", "1.jpg")
    photo_files(tmp_path / "other", "2.jpg sub/3.jpg")
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "other/2.jpg")
    (tmp_path / "in/folder").symlink_to(tmp_path / "other/sub")
    outside = [f"{tmp_path}/other/2.jpg", "/etc/shadow", "file:///etc/passwd", "link.jpg", "folder/3.jpg"]
    index = write(tmp_path / "in/index.csv", [("ann", uri, "") for uri in ["1.jpg", *outside]])
    links = [f"{tmp_path}/in/link.jpg", "folder/3.jpg"]
    assert refused(index) == dict.fromkeys([*outside[:3], *links], OUTSIDE)
    assert f"row 4: uri '/etc/shadow' is refused: {OUTSIDE}" in caplog.text
    assert list(refused(index, str(tmp_path / "other"))) == ["/etc/shadow", "file:///etc/passwd"]
    sizes = {p.uri: p.size for i in index_identities(index, [str(tmp_path / "other")]) for p in i.photos if p.size}
    assert len(sizes) == 4
    with pytest.raises(ConfigError, match=r"allow_roots: .*/none is no folder here"):
        refused(index, str(tmp_path / "none"))


@pytest.mark.parametrize("swap", ["file", "folder"])
def test_a_link_that_is_put_in_after_the_plan_is_refused_when_it_is_read(tmp_path: Path, swap: str) -> None:
    photo_files(tmp_path / "in", "sub/1.jpg")
    photo_files(tmp_path / "secret", "1.jpg")
    index = write(tmp_path / "in/index.csv", [("ann", "sub/1.jpg", "")])
    ((photo,),) = [i.photos for i in index_identities(index)]
    roots, opened = roots_of(index, ()), dict[str, Storage]()
    assert read_allowed(photo.uri, roots, opened) == b"1234"
    (tmp_path / "in/sub/1.jpg").unlink()
    if swap == "file":
        (tmp_path / "in/sub/1.jpg").symlink_to(tmp_path / "secret/1.jpg")
    else:
        (tmp_path / "in/sub").rmdir()
        (tmp_path / "in/sub").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match=OUTSIDE):
        read_allowed(photo.uri, roots, opened)
