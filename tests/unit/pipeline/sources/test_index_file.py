"""Index files: CSV and Parquet give the same identities, and every fault names its row."""

import csv
import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dladiff.errors import ConfigError, StorageError
from pipeline.sources import index_formats
from pipeline.sources.addresses import OUTSIDE, read_allowed, roots_of
from pipeline.sources.cells import bare
from pipeline.sources.find import Identity, Photo
from pipeline.sources.index_file import REFUSED, index_identities, is_index
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

Rows = list[tuple[str, str, str]]


def write(path: Path, rows: Rows, *, role: bool = True) -> str:
    """Write an index with the extension of `path`; return its address."""
    names = ["identity", "uri", "role"][: 3 if role else 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        columns = {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}
        pq.write_table(pa.table(columns | {"age": pa.array([1] * len(rows))}), path)
    else:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([["age", *names], *(["1", *row[: len(names)]] for row in rows)])
        path.write_text(text.getvalue(), encoding="utf-8-sig", newline="")
    return str(path)


def photo_files(folder: Path, keys: str) -> None:
    storage = open_storage(folder, create=True)
    for key in keys.split():
        storage.put(key, b"1234")


def found(uri: str) -> dict[str, list[str]]:
    return {i.name: [p.uri for p in i.photos] for i in index_identities(uri)}


def refused(uri: str, *roots: str) -> dict[str, str]:
    """Return why photos are refused, by URI."""
    photos = [p for i in index_identities(uri, roots) for p in (*i.photos, *i.clean)]
    return {p.uri: p.tag.removeprefix(REFUSED) for p in photos if p.tag.startswith(REFUSED)}


def faults(uri: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        list(index_identities(uri))
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("a.csv", True), ("s3://b/x.PARQUET", True), ("/a/b.Csv", True), ("a.tsv", False), ("csv", False), ("a/", False)],
)
def test_an_index_is_known_by_its_extension(uri: str, expected: bool) -> None:
    assert is_index(uri) is expected


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_identities_roles_addresses_tags_and_sizes(tmp_path: Path, name: str) -> None:
    photo_files(tmp_path / "in", "ann/1.jpg ann/2.jpg ann/sub/2.jpg top.jpg")
    photo_files(tmp_path / "other", "3.jpg")
    other = tmp_path / "other/3.jpg"
    index = write(
        tmp_path / "in" / name,
        [
            ("bob", "./top.jpg", ""),
            ("ann", "ann/2.jpg", "protect"),
            ("ann", other.as_uri(), "clean"),
            ("ann", "ann/1.jpg", ""),
            ("ann", "ann/gone.jpg", ""),
            ("ann", "nowhere/gone.jpg", ""),
            ("ann", "ann/sub/2.jpg", "ignore"),
            ("eve", str(tmp_path / "in/ann/sub/2.jpg").replace("sub/2", "sub/3"), "clean"),
        ],
    )
    root = tmp_path / "in"
    tags = {key: open_storage(root).tag(key) or "" for key in ("ann/1.jpg", "ann/2.jpg", "top.jpg")}
    assert list(index_identities(index, [str(tmp_path / "other")])) == [
        Identity(
            "ann",
            (
                Photo("1.jpg", f"{root}/ann/1.jpg", tags["ann/1.jpg"], 4),
                Photo("2.jpg", f"{root}/ann/2.jpg", tags["ann/2.jpg"], 4),
                Photo("gone.jpg", f"{root}/ann/gone.jpg", "missing", 0),
                Photo("gone.jpg", f"{root}/nowhere/gone.jpg", "missing", 0),
            ),
            (Photo("3.jpg", str(other), open_storage(other.parent).tag("3.jpg") or "", 4),),
        ),
        Identity("bob", (Photo("top.jpg", f"{root}/top.jpg", tags["top.jpg"], 4),)),
    ]  # eve has no photo to protect


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_the_role_is_optional_and_a_photo_counts_once(tmp_path: Path, name: str) -> None:
    photo_files(tmp_path, "1.jpg")
    rows = [("ann", "1.jpg", ""), ("ann", "./1.jpg", ""), ("ann", str(tmp_path / "1.jpg"), "")]
    assert found(write(tmp_path / name, rows, role=False)) == {"ann": [f"{tmp_path}/1.jpg"]}


def test_an_index_is_found_by_path_and_by_file_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_files(tmp_path, "1.jpg")
    index = write(tmp_path / "my index.csv", [("ann", "1.jpg", "")])
    expected = {"ann": [f"{tmp_path}/1.jpg"]}
    monkeypatch.chdir(tmp_path)
    assert found(index) == found(Path(index).as_uri()) == found("my index.csv") == found("./my index.csv") == expected


def test_blank_lines_quotes_and_short_rows(tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    index.write_bytes(b'uri,identity,role\r\n\r\n"a, b.jpg","Ann ""A"""\r\n"c\nd.jpg",Bob,\r\n')
    assert found(str(index)) == {'Ann "A"': [f"{tmp_path}/a, b.jpg"], "Bob": [f"{tmp_path}/c\nd.jpg"]}


def test_numbers_are_names_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"identity": pa.array([2880, 5]), "uri": pa.array(["1.jpg", "2.jpg"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "i.parquet")
    assert found(str(tmp_path / "i.parquet")) == {"2880": [f"{tmp_path}/1.jpg"], "5": [f"{tmp_path}/2.jpg"]}


def test_faulty_rows_are_counted_and_the_first_five_listed(tmp_path: Path) -> None:
    good, bad = ("ann", "1.jpg", ""), [(" ", "2.jpg", ""), ("ann", "", ""), ("ann", "3.jpg", "Protect")]
    index = write(tmp_path / "index.csv", [good, *bad, *([bad[0]] * 4), ("ann", "ftp://host/5.jpg", "")])
    assert faults(index) == [
        f"{index}, row 3: identity is empty",
        f"{index}, row 4: uri is empty",
        f"{index}, row 5: role 'Protect' is unknown; use protect, clean or ignore",
        f"{index}, row 6: identity is empty",
        f"{index}, row 7: identity is empty",
        f"{index}: 2 more faults",
    ]


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


def test_a_cell_of_a_megabyte_is_the_fault_of_its_row(tmp_path: Path) -> None:
    photo_files(tmp_path, "1.jpg")
    index = write(tmp_path / "index.csv", [("ann", "1.jpg", ""), ("bob", "x" * 1_000_000, ""), ("eve", "\0.jpg", "")])
    assert list(found(index)) == ["ann", "bob", "eve"]
    assert list(refused(index).values()) == ["it has more than 4096 characters", "it holds a NUL or a backslash"]


def test_a_line_without_an_end_is_a_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_formats, "MAX_CELL", 1000)
    index = write(tmp_path / "index.csv", [("ann", "x" * 2000, "")])
    assert faults(index) == [f"{index}, line 1: not CSV (a line has more than 1000 characters); save it as CSV UTF-8"]


def test_an_identity_that_is_no_utf8_is_a_fault_of_the_file(tmp_path: Path) -> None:
    index = tmp_path / "index.parquet"
    column = pa.array([b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"identity": column, "uri": ["1.jpg"]}), index)
    assert faults(str(index)) == [f"{index}, row 1: identity '\\\\udcff' is not UTF-8"]


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


def test_parquet_rows_are_counted_from_one(tmp_path: Path) -> None:
    index = tmp_path / "index.parquet"
    pq.write_table(pa.table({"identity": ["ann", None], "uri": ["1.jpg", "2.jpg"], "role": ["clean", None]}), index)
    assert faults(str(index)) == [f"{index}, row 2: identity is empty"]


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_contradicting_rows_are_refused(tmp_path: Path, name: str) -> None:
    rows = [("ann", "1.jpg", ""), ("bob", "1.jpg", "ignore"), ("ann", "2.jpg", "clean"), ("ann", "2.jpg", "protect")]
    index = write(tmp_path / name, rows)
    assert faults(index) == [
        f"{index}, uri {tmp_path}/1.jpg: is listed for 'ann' and for 'bob'",
        f"{index}, uri {tmp_path}/1.jpg: is listed with two roles",
        f"{index}, uri {tmp_path}/2.jpg: is listed with two roles",
    ]


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_a_missing_column_is_named_with_those_found(tmp_path: Path, name: str) -> None:
    index = tmp_path / name
    if name.endswith(".csv"):
        index.write_text("person;uri\nann;1.jpg\n")
        assert faults(str(index)) == [f"{index}: column identity and uri is missing; found: person;uri"]
        index.write_text("")
        assert faults(str(index)) == [f"{index}: column identity and uri is missing; found: none"]
    else:
        pq.write_table(pa.table({"person": ["ann"], "uri": ["1.jpg"]}), index)
        assert faults(str(index)) == [f"{index}: column identity is missing; found: person, uri"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("identity,uri\nJosé,1.jpg\n".encode("latin-1"))
    (tmp_path / "b.csv").write_bytes(b'identity,uri\nann,"1.jpg\n')
    (tmp_path / "c.parquet").write_bytes(b"identity,uri\nann,1.jpg\n")
    assert "not UTF-8; save it as CSV UTF-8" in faults(str(tmp_path / "a.csv"))[0]
    assert "b.csv, line 2: not CSV" in faults(str(tmp_path / "b.csv"))[0]
    assert "not a Parquet file that can be read" in faults(str(tmp_path / "c.parquet"))[0]
    with pytest.raises(StorageError, match=r"cannot read .*d.csv"):
        list(index_identities(str(tmp_path / "d.csv")))


def test_an_empty_index_holds_no_identity(tmp_path: Path) -> None:
    assert found(write(tmp_path / "index.csv", [])) == found(write(tmp_path / "index.parquet", [])) == {}


def test_only_the_files_that_are_named_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    photo_files(tmp_path / "in", "1.jpg sub/2.jpg")
    photo_files(tmp_path / "other", "3.jpg")
    (tmp_path / "in" / "out.jpg").symlink_to(tmp_path / "other" / "3.jpg")
    (tmp_path / "in" / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    uris = ["/nonexist.jpg", "/etc/passwd", "1.jpg", "out.jpg", "loop/4.jpg", "pipe.jpg", f"{'long' * 100}.jpg"]
    index = write(tmp_path / "in" / "index.csv", [("ann", uri, "") for uri in [*uris, "1.jpg/5.jpg"]])
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("a folder was listed"))
    (ann,) = index_identities(index)
    assert {photo.uri: photo.size for photo in ann.photos if photo.size} == {f"{tmp_path}/in/1.jpg": 4}
    assert len(ann.photos) == 8
    outside = ["/nonexist.jpg", "/etc/passwd", "loop/4.jpg", f"{tmp_path}/in/out.jpg"]  # with rows first
    assert caplog.messages == [line for line in caplog.messages if any(repr(uri) in line for uri in outside)]
    assert len(caplog.messages) == 4


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4).map(bare).filter(bool)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 30), st.tuples(NAMES, st.sampled_from(["", "protect", "clean"])), max_size=12))
def test_csv_and_parquet_agree_and_lose_nothing(tmp_path: Path, given: dict[int, tuple[str, str]]) -> None:
    rows = [(name, f"{number % 3}/{number}.jpg", role) for number, (name, role) in given.items()]
    from_csv = list(index_identities(write(tmp_path / "i.csv", rows)))
    assert from_csv == list(index_identities(write(tmp_path / "i.parquet", rows)))
    names = [identity.name for identity in from_csv]
    assert names == sorted({name for name, _, role in rows if role != "clean"})
    for identity in from_csv:
        mine = [(f"{tmp_path}/{uri}", role) for name, uri, role in rows if name == identity.name]
        assert [p.uri for p in identity.photos] == sorted(uri for uri, role in mine if role != "clean")
        assert [p.uri for p in identity.clean] == sorted(uri for uri, role in mine if role == "clean")
