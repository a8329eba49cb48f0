"""Outputs with forged or damaged objects: each is reported and skipped, and no other identity is affected."""

import io
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dladiff.errors import DamagedError, StorageError
from pipeline.cli.main import main
from pipeline.records import commit as records
from pipeline.records import lease, loading
from pipeline.records.lease import Lease
from pipeline.records.manifest import FILES, PHOTOS_KEY, write_manifest
from pipeline.records.schema import RECORDS, table
from pipeline.run.live import Actors
from pipeline.storage.base import Storage
from tests.support.outputs import protected_output

DEEP = "[" * 200_000
HOSTILE: list[str] = [
    *("null", "true", "-1", "1e999", "NaN", str(10**30), '"x"', r'"\ud800"', '"0001-01-01T00:00:00"', '""'),
    *("[]", "{}", "[null]", '[{"a": []}]', '{"a": "b"}', '{"": null}', "[[[[[[[1]]]]]]]", json.dumps("x" * 100_000)),
]
"""JSON texts that stand in the place of each value."""
OBJECTS = [b"", b"\xff", b"null", b'"x"', b"1e999", b"[]", b"{}", DEEP.encode(), b'{"a":' * 100_000]
PLACES = [
    *("done/eve.json", "failed/eve.json", "failed/ann.json", "starts/ann/1.json", "plan/latest.json", "lock.json"),
    *("manifest/records.parquet", "manifest/identities.parquet", "traces/ann.json"),
]
ANY_NAME = PLACES[:2] + PLACES[3:4]
"""Places in which many objects stand at a time."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    protected_output(folder, {"ann": ["1.png", "2.png"], "bob": ["1.png", "broken.png"]})
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return protected_output(tmp_path, {"ann": ["1.png"], "bob": ["1.png"]})


def positions(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value inside a JSON value."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in inner:
        yield from positions(part, (*path, name))


def changed(record: Any, path: tuple[Any, ...], text: str) -> str:
    """A record with other JSON in one place."""
    copy = json.loads(json.dumps(record))
    place = copy
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = "\0here"
    return json.dumps(copy).replace(json.dumps("\0here"), text)


def run(*arguments: str) -> str:
    """Run a command; its output. Whatever it found, it must not be a fault of ours."""
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code in (0, 1, 2, 3), found.output
    assert "fault of dladiff" not in found.output and "Traceback" not in found.output, found.output[-3000:]
    return found.output


def commands(folder: Path) -> dict[str, str]:
    """Run every command that reads an output; what each says."""
    place, page = ["--output", str(folder / "out")], str(folder / "page.html")
    calls = [["status"], ["failed"], ["verify"], ["finalise"], ["report", "--html", page], ["plan"], ["verify"]]
    options = {name: ["--input", str(folder / "in")] for name in ("plan", "verify", "report")}
    said = {}
    for call in calls:
        said[call[0]] = run(*call, *place, *options.get(call[0], []))
    return said


def test_any_value_in_any_place_of_a_record_costs_that_record_alone(tmp_path: Path) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png"], "bob": ["1.png"]})
    record = records.load_record(output, "done/bob.json")
    output.put("failed/cid.json", json.dumps(record | {"identity": "cid"}).encode())
    count = 0
    for path in positions(record):
        for text in HOSTILE:
            count += 1
            name = f"p{count:05d}"
            whole = changed(record, path, text).replace('"bob"', f'"{name}"').replace("photos/bob/", f"photos/{name}/")
            output.put(f"{('done', 'failed')[count % 2]}/{name}.json", whole.encode())
    assert count > 1000
    said = commands(tmp_path)
    assert said["verify"].count("delete it and run again") > 500
    assert records.read_index(output, cached=False).done["ann", 0].photos == 1
    names = pq.read_table(io.BytesIO(output.get(PHOTOS_KEY)))["identity"].to_pylist()
    assert "ann" in names and "bob" in names


@pytest.mark.parametrize("place", PLACES)
def test_any_bytes_in_any_place_of_an_output_stop_no_one_else(
    tmp_path: Path, output: Storage, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.0)
    before = output.get(place) if output.tag(place) else None
    rounds = [{place: data} for data in OBJECTS]
    if place in ANY_NAME:
        rounds = [{place.replace(".", f"{i}."): data for i, data in enumerate(OBJECTS)}]
    for objects in rounds:
        for key, data in objects.items():
            output.put(key, data)
        said = commands(tmp_path)
        assert "2 photos, 2 compared with their source" in said["verify"], objects.keys()
        assert (tmp_path / "page.html").read_text().count('class="person"') == 2 or "failed/ann" in place
        for key in objects:
            output.delete(key)
        if before is not None:
            output.put(place, before)
        write_manifest(output, force=True)


def test_a_record_larger_than_any_is_not_read(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_BYTES", 10)
    monkeypatch.setattr(loading.load, "__defaults__", (10,))
    with pytest.raises(DamagedError, match="has more than 10 bytes; delete it"):
        records.load_record(output, "done/ann.json")
    index = records.read_index(output, cached=False)
    assert set(index.damaged) == {"done/ann.json", "done/bob.json"} and not index.done


def column(rows: pa.Table, name: str, values: pa.Array) -> bytes:
    file = io.BytesIO()
    place = rows.schema.get_field_index(name)
    pq.write_table(rows.set_column(place, pa.field(name, values.type), values), file)
    return file.getvalue()


@pytest.mark.parametrize("key", list(FILES))
def test_manifests_of_other_columns_are_reported_and_rows_without_a_value_left_out(tmp_path: Path, key: str) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png"]})
    data = output.get(key)
    rows = pq.read_table(io.BytesIO(data))
    page = ["--html", str(tmp_path / "page.html"), "--output", output.uri]
    for name in rows.schema.names:
        other = pa.array([7] * len(rows)) if rows.schema.field(name).type != pa.int64() else pa.array(["x"] * len(rows))
        output.put(key, column(rows, name, other))
        assert "cannot be read; run `dladiff finalise" in run("report", *page)
        output.put(key, column(rows, name, pa.nulls(len(rows), rows.schema.field(name).type)))
        run("report", *page)
        run("verify", "--output", output.uri)
        if key == PHOTOS_KEY:
            run("evaluate", "--output", output.uri, "--results", str(tmp_path / "r"), "--dry-run")
        output.put(key, data)
    output.put(key, column(rows, "identity", pa.nulls(len(rows), pa.string())))
    assert "rows of the manifests that are damaged and left out: 1" in run("report", *page)
    file = io.BytesIO()
    pq.write_table(rows.drop_columns(["status"]), file)
    output.put(key, file.getvalue())
    assert "cannot be read" in run("report", *page)


def test_text_that_is_no_text_and_times_beyond_the_calendar(tmp_path: Path) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png"]})
    rows = pq.read_table(io.BytesIO(output.get(PHOTOS_KEY)))
    raw = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    far = pa.array([2**62]).cast(pa.timestamp("us", tz="UTC"))
    for name, values in (("reason", raw), ("started_at", far)):
        output.put(PHOTOS_KEY, column(rows, name, values))
        for call in (["report"], ["verify"], ["evaluate", "--results", str(tmp_path / "r"), "--dry-run"]):
            assert "Error" not in run(*call, "--output", output.uri).replace("(UnicodeDecodeError)", "").replace(
                "(OverflowError)", ""
            ).replace("(ValueError)", "")


def test_a_forged_index_is_reported_and_rebuilt(tmp_path: Path) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png"], "bob": ["1.png"]})
    rows = pq.read_table(io.BytesIO(output.get(records.INDEX))).to_pylist()

    def stored(**changes: Any) -> None:
        file = io.BytesIO()
        pq.write_table(table([rows[0] | changes, *rows[1:]], RECORDS), file)
        output.put(records.INDEX, file.getvalue())

    stored(key="another", failed_photos=1)
    assert "manifest/records.parquet: 1 rows are not what the records say" in run("verify", "--output", output.uri)
    run("finalise", "--output", output.uri)
    assert "1 rows" not in run("verify", "--output", output.uri)
    foreign: list[dict[str, Any]] = [
        {"identity": "eve"},
        {"part": 3},
        {"place": "plan/latest.json"},
        {"status": "fine"},
        {"key": None},
    ]
    foreign += [{"finished_at": "yesterday"}, {"photos": -1}, {"seconds": float("nan")}, {"started_at": "2020-01-01"}]
    for change in foreign:
        stored(**change)
        index = records.read_index(output)
        assert index.done["ann", 0].key == "k" and not index.fresh, change


def test_a_record_that_is_damaged_after_it_was_indexed_is_left_out_of_the_manifest(output: Storage) -> None:
    index = records.read_index(output)
    output.put("done/ann.json", DEEP.encode())
    assert write_manifest(output, index, force=True) == (1, 1)
    assert set(index.done) == {("bob", 0)}


@pytest.mark.parametrize("pid", [-1, 0, -(2**31), 10**30, 2**31, True, 1.5, "1", None, [1]])
def test_a_lock_never_signals_a_group_of_processes(
    output: Storage, pid: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "kill", lambda *asked: pytest.fail(f"asked for {asked}"))
    held = {"owner": "x", "host": socket.gethostname(), "pid": pid, "time": {"since": "x" * 50_000}}
    output.put("lock.json", json.dumps(held).encode())
    with pytest.raises(StorageError, match="another run writes") as caught, Lease(output):
        pass
    assert len(str(caught.value)) < 600
    then = time.time() - lease.LEASE_S - 1
    os.utime(output.uri_of("lock.json"), (then, then))
    with Lease(output):
        pass


@pytest.mark.parametrize("data", [b"{", b"[]", DEEP.encode(), b'{"key": ["k"], "run_id": {}}', b"x" * 100_000])
def test_a_damaged_note_of_a_start_is_no_start(output: Storage, data: bytes) -> None:
    records.write_start(output, ("ann", 0), "k", "r")
    output.put("starts/ann/hostile.json", data)
    assert records.count_starts(output, ("ann", 0), "k", "r") == 1
    actors = Actors(output, every=0)
    assert [working.identity for working in actors()] == ["ann"] == [working.identity for working in actors()]


def test_notes_of_starts_with_times_that_cannot_be_compared(output: Storage) -> None:
    note = {"host": "h", "pid": 1, "identity": "eve"}
    for place, when in enumerate(["2020-01-01", 5, None, "2020-01-01T00:00:00+00:00"]):
        output.put(f"starts/eve/{place}.json", json.dumps(note | {"time": when}).encode())
    assert [working.identity for working in Actors(output, every=0)()] == ["eve"]


def test_status_counts_on_where_the_plan_is_damaged(output: Storage) -> None:
    latest = json.loads(output.get("plan/latest.json"))
    for change in ({"plan": 5}, {"plan": "done/ann.json"}, {"started_at": "x"}, {"inputs": "x"}, {"plan": "plan/no"}):
        output.put("plan/latest.json", json.dumps(latest | change).encode())
        said = run("status", "--output", output.uri)
        assert "done: 2" in said
        assert "inputs" in change or "left: -" in said
