"""Index files: CSV and Parquet give the same identities, and every fault names its row."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dladiff.errors import StorageError
from pipeline.sources import index_formats
from pipeline.sources.cells import bare
from pipeline.sources.find import Identity, Photo
from pipeline.sources.index_file import index_identities, is_index
from pipeline.storage.open import open_storage
from tests.support.index_files import faults, found, photo_files, refused, write


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
