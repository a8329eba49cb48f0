"""SSIMULACRA2 in the records: columns, status, and outputs of versions that did not measure it."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.evaluate.plan import make_plan
from pipeline.records import commit as records
from pipeline.records import loading, manifest
from pipeline.records.index import RECORD
from pipeline.records.loading import load_record
from pipeline.records.schema import LATER, PHOTOS, RECORDS
from pipeline.report.explain import _rows
from pipeline.report.write import write_report
from pipeline.run.progress import closing_table
from pipeline.run.status import status
from pipeline.run.verify import verify
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.evaluated import configured
from tests.support.outputs import protected_output

NEW = ("ssimulacra2", "ssimulacra2_face", "joint_layers", "geometry")


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return protected_output(tmp_path, {"ann": ["1.png", "2.png"], "bob": ["1.png"]}, visibility=0)


def read(output: Storage, key: str) -> pa.Table:
    return pq.read_table(io.BytesIO(output.get(key)))


def of_an_earlier_version(output: Storage) -> Storage:
    """Store records as earlier versions did, with complete rows, and take the new columns out of them and of tables."""
    for entry in [e for e in output.list("done/") if RECORD.fullmatch(e.key)]:
        record = load_record(output, entry.key)
        for photo in record["photos"]:
            for name in NEW:
                del photo[name]
        output.put(entry.key, json.dumps(record, indent=1).encode())
    for entry in list(output.list("settings/")):
        output.delete(entry.key)
    manifest.write_manifest(output, force=True)
    for key in (manifest.PHOTOS_KEY, records.INDEX):
        table = read(output, key)
        table = table.drop_columns([name for name in NEW if name in table.column_names]).replace_schema_metadata()
        file = io.BytesIO()
        pq.write_table(table, file)
        output.put(key, file.getvalue())
        assert not set(NEW) & set(read(output, key).column_names)
    return output


def test_the_manifest_has_the_scores_of_each_photo(output: Storage) -> None:
    rows = read(output, manifest.PHOTOS_KEY).to_pylist()
    assert [(row["ssimulacra2"], row["ssimulacra2_face"]) for row in rows] == [(90.0, 80.0)] * 3
    about = {name: PHOTOS.field(name).metadata[b"about"].decode() for name in NEW}
    for words in ("1,080 px", "100 identical", "90 not distinguishable", "no lower limit"):
        assert words in about["ssimulacra2"]
    assert "null without a face" in about["ssimulacra2_face"]
    assert {field.name for schema in (PHOTOS, RECORDS) for field in schema if LATER in field.metadata} == set(NEW)


def test_a_photo_without_a_face_has_no_score_of_a_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from tests.support.fakes import AddNoise

    real = AddNoise._one
    one = staticmethod(lambda photo, clean: replace(real(photo, clean), ssimulacra2_face=float("nan")))
    monkeypatch.setattr(AddNoise, "_one", one)
    output = protected_output(tmp_path, {"ann": ["1.png"]})
    assert read(output, manifest.PHOTOS_KEY)["ssimulacra2_face"].to_pylist() == [None]
    write_report(output)
    assert verify(output).faults == []


def test_status_has_lowest_and_median_of_the_tasks(tmp_path: Path) -> None:
    output = protected_output(tmp_path, {name: ["1.png", "2.png"] for name in ("ann", "bob", "cid")})
    for name, scores in {"ann": (88.0, 71.24), "bob": (95.0, 93.0), "cid": (-4.0, 60.0)}.items():
        record = json.loads(output.get(f"done/{name}.json"))
        for photo, score in zip(record["photos"], scores, strict=True):
            photo["ssimulacra2"] = score
        output.put(f"done/{name}.json", json.dumps(record).encode())
    found = status(output)
    assert (found["ssimulacra2_lowest"], found["ssimulacra2_median"]) == (-4.0, 71.2)
    manifest.write_manifest(output)
    assert status(output) == found  # from the stored index
    assert status(open_storage(tmp_path / "none", create=True))["ssimulacra2_lowest"] is None


def test_the_closing_table_has_lowest_and_median() -> None:
    def row(*scores: float | None) -> dict[str, Any]:
        return dict(zip(NEW[:2], scores, strict=True)) | {"psnr": 30.0, "similarity": []}

    common = {"status": "done", "failed_photos": 0}
    results = [
        common | {"identity": "ann", "photos": 3, "rows": [row(91.2, 70.4), row(80.1, None), row(88.0, 60.0)]},
        common | {"identity": "bob", "photos": 1, "rows": [{"psnr": None, "similarity": None}]},
    ]
    shown = Console(file=io.StringIO(), width=160)
    shown.print(closing_table(results))
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    assert "SSIMULACRA2" in text and "80 / 88" in text and "60 / 65" in text
    assert "lowest / median of the photos" in text


def test_every_command_reads_an_output_of_an_earlier_version(
    output: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_an_earlier_version(output)
    assert verify(output).faults == []
    source = read(output, manifest.PHOTOS_KEY)["source_uri"].to_pylist()[0]
    row = _rows(output, "0", source.removeprefix("file://"))[0][0]
    assert (row["status"], row["ssimulacra2"], row["ssimulacra2_face"]) == ("protected", None, None)
    assert make_plan(configured(tmp_path)).rows
    written = write_report(output)
    assert (written.shown, written.photos) == (3, 3) and not [n for n in written.notes if "damaged" in n]
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("a record was read"))  # the old index still serves
    found = status(output)
    assert (found["done"], found["ssimulacra2_lowest"], found["ssimulacra2_median"]) == (2, None, None)
    assert manifest.write_manifest(output) == (3, 2)


def test_an_index_with_a_strange_column_is_not_used(output: Storage) -> None:
    table = read(output, records.INDEX)
    file = io.BytesIO()
    pq.write_table(table.append_column("ssimulacra3", pa.nulls(table.num_rows, pa.float64())), file)
    output.put(records.INDEX, file.getvalue())
    assert records.stored_rows(output) == {}
    assert status(output)["done"] == 2


def test_a_forged_score_of_another_type_is_a_fault(output: Storage) -> None:
    record = json.loads(output.get("done/ann.json"))
    record["photos"][0]["ssimulacra2"] = "100"
    output.put("done/ann.json", json.dumps(record).encode())
    assert "ssimulacra2 of a photo is of another type" in verify(output).faults[0]
