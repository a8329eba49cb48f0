"""cells: whatever type a column has, a cell is the text that people mean, or is refused by column and row."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources.cells import Refused, bare, text_of
from tests.support.index_files import faults, found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ann", "ann"), ("\ufeff ann\xa0\u200b", "ann"), (" \t", ""), (None, ""), (float("nan"), ""),
        (12, "12"), (12.0, "12"), (-3.0, "-3"), (Decimal("12.00"), "12"), (0, "0"),
        (b"Ann\xc3\xa9 ", "Ann\xe9"), (b"\xff", "\udcff"), (10**30, str(10**30)),
    ],
)  # fmt: skip
def test_text(value: object, text: str) -> None:
    assert text_of(value) == text
    assert not isinstance(text_of(value), Refused)


@pytest.mark.parametrize(
    "value", [True, 12.5, float("inf"), 1e300, Decimal("1.5"), [1], {"a": 1}, datetime.date(2026, 1, 2), (1,)]
)
def test_other_values_are_refused(value: object) -> None:
    assert isinstance(text_of(value), Refused)


def test_bare_ends() -> None:
    assert bare("\ufeff \ufeff\xa0x y\u200b \ufeff") == "x y"


def table(tmp_path: Path, identity: Any, uri: Any = None) -> str:
    uri = pa.array([f"{n}.jpg" for n in range(len(identity))]) if uri is None else uri
    pq.write_table(pa.table({"identity": identity, "uri": uri}), tmp_path / "i.parquet")
    return str(tmp_path / "i.parquet")


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pa.array([b"ann", "b\xe9a".encode()], pa.binary()), ["ann", "b\xe9a"]),
        (pa.array([b"ann", b"bob"], pa.large_binary()), ["ann", "bob"]),
        (pa.array([12.0, 13.0]), ["12", "13"]),
        (pa.array([12.0, 13.0], pa.float32()), ["12", "13"]),
        (pa.array([12, None], pa.int16()), None),
        (pa.array([Decimal("12.0"), Decimal("13.0")]), ["12", "13"]),
        (pa.array(["ann", "bob"]).dictionary_encode(), ["ann", "bob"]),
        (pa.array(["\xa0ann", "bob "], pa.large_string()), ["ann", "bob"]),
    ],
)
def test_identities_of_every_type(tmp_path: Path, column: Any, names: list[str] | None) -> None:
    index = table(tmp_path, column)
    if names is None:
        assert faults(index) == [f"{index}, row 2: identity is empty"]
    else:
        assert sorted(found(index)) == sorted(names)


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (pa.array([12.0, 12.5]), "row 2: column identity is 12.5, no whole number"),
        (pa.array(["a", "b"]).cast(pa.string()), ""),
        (pa.array([[1], [2]]), "row 1: column identity is a list"),
        (pa.array([{"a": 1}, {"a": 2}]), "row 1: column identity is a dict"),
        (pa.array([True, False]), "row 1: column identity is a truth value"),
        (pa.array([datetime.date(2026, 1, 1)] * 2), "row 1: column identity is a date"),
        (pa.array([datetime.datetime(2026, 1, 1)] * 2), "row 1: column identity is a datetime"),
    ],
)
def test_other_types_are_refused_by_column_and_row(tmp_path: Path, column: Any, why: str) -> None:
    index = table(tmp_path, column)
    if why:
        assert why in faults(index)[0]
    else:
        assert sorted(found(index)) == ["a", "b"]


def test_a_uri_that_is_no_text_is_refused(tmp_path: Path) -> None:
    index = table(tmp_path, pa.array(["ann", "bob"]), pa.array([[1], [2]]))
    assert "row 1: column uri is a list" in faults(index)[0]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_headers_and_cells_lose_what_stands_around_them(tmp_path: Path, ending: str) -> None:
    index = tmp_path / f"i.{ending}"
    names, cells = ["\ufeff identity\xa0", " uri ", "role\u200b"], ["\xa0ann ", " 1.jpg\xa0", " protect "]
    if ending == "csv":
        index.write_text(f"\ufeff{','.join(names)}\n{','.join(cells)}\n", encoding="utf-8")
    elif ending == "jsonl":
        index.write_text("\ufeff" + json.dumps(dict(zip(names, cells, strict=True))) + "\n\n", encoding="utf-8")
    else:
        pq.write_table(pa.table({name: [cell] for name, cell in zip(names, cells, strict=True)}), index)
    assert found(str(index)) == {"ann": [f"{tmp_path}/1.jpg"]}


def test_jsonl(tmp_path: Path) -> None:
    index = tmp_path / "i.jsonl"
    rows = [
        {"identity": 12, "uri": "1.jpg"},
        {"identity": 12.0, "uri": "2.jpg", "age": [3]},
        {"identity": "12", "uri": "3.jpg"},
    ]
    index.write_text("\n".join(map(json.dumps, rows)))
    assert {name: len(uris) for name, uris in found(str(index)).items()} == {"12": 3}
    for line, fault in (
        ('{"identity": 12.5, "uri": "4.jpg"}', "row 4: column identity is 12.5"),
        ('{"identity": true, "uri": "4.jpg"}', "row 4: column identity is a truth value"),
        ('{"uri": "4.jpg"}', "row 4: identity is empty"),
        ('["ann", "4.jpg"]', "line 4: not JSON (not an object)"),
        ('{"identity": "ann", "uri": ', "line 4: not JSON"),
        ("[" * 100_000, "line 4: not JSON"),
    ):
        index.write_text("\n".join([*map(json.dumps, rows), line]))
        assert fault in faults(str(index))[0]
    index.write_bytes(b'{"identity": "\xff", "uri": "1.jpg"}')
    assert "not UTF-8" in faults(str(index))[0]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("identity, identity,uri\nann,bob,1.jpg\n")
    assert "column identity is there twice" in faults(str(tmp_path / "i.csv"))[0]
