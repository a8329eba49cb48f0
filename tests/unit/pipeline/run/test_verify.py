"""What `dladiff verify` finds: each fault made by hand on a sound output; and failures that are forgotten."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dladiff.core import quality
from dladiff.errors import StorageError
from pipeline.records import commit as records
from pipeline.records.lease import Lease
from pipeline.records.manifest import write_manifest
from pipeline.records.output_format import encode_png
from pipeline.records.packed import unpack
from pipeline.run import failures
from pipeline.run.plan import Retry
from pipeline.run.verify import verify
from pipeline.sources.decode import decode
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.outputs import protected_output

RECORD = "done/ann.json"


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return protected_output(tmp_path, {"ann": ["1.png", "2.png"]})


def first_photo(output: Storage) -> dict[str, Any]:
    row: dict[str, Any] = records.load_record(output, RECORD)["photos"][0]
    return row


def recorded(output: Storage, **changes: Any) -> None:
    """Change what the commit record says of its first photo."""
    record = unpack(output, records.load(output, RECORD))
    record["photos"][0] |= changes
    output.put(RECORD, json.dumps(record).encode())


def test_a_sound_output_has_no_fault(output: Storage) -> None:
    found = verify(output)
    assert (found.photos, found.compared, found.faults, found.orphans) == (2, 2, [], [])


def test_other_bytes_and_no_bytes(output: Storage) -> None:
    key = first_photo(output)["output_key"]
    output.put(key, output.get(key) + b"x")
    assert verify(output).faults == [f"{key}: its checksum is not the recorded one"]
    output.delete(key)
    (fault,) = verify(output).faults
    assert fault == f"{key}: is missing; delete done/ann.json, and the next protect makes it again"


def test_a_photo_of_another_size(output: Storage) -> None:
    row = first_photo(output)
    recorded(output, width=row["width"] + 1)
    fault, manifest = verify(output).faults
    assert fault.endswith(f"recorded {row['width'] + 1} x {row['height']}")
    assert manifest == "manifest/photos.parquet: 1 rows are not what the records say; run `dladiff finalise`"


def test_a_pixel_outside_its_bound_is_reported_with_its_position(output: Storage) -> None:
    row = first_photo(output)
    pixels = np.array(decode(output.get(row["output_key"]), max_pixels=10**6).pixels)
    pixels[3, 5] = np.where(pixels[3, 5] > 127, 0, 255)
    data = encode_png(pixels)
    output.put(row["output_key"], data)
    recorded(output, output_sha256=hashlib.sha256(data).hexdigest(), faces=[])
    assert "at x 5, y 3, bound 12.0/255" in verify(output).faults[0]


def test_two_layers_of_sign_steps_have_two_bounds(tmp_path: Path) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png"]}, visibility=0)
    row = first_photo(output)
    pixels = np.array(decode(output.get(row["output_key"]), max_pixels=10**6).pixels)
    pixels[3, 5] = np.where(pixels[3, 5] > 127, 0, 255)
    data = encode_png(pixels)
    output.put(row["output_key"], data)
    digest = hashlib.sha256(data).hexdigest()
    recorded(output, output_sha256=digest, faces=[])
    assert "at x 5, y 3, bound 7.0/255" in verify(output).faults[0]
    face = {"box": [0.0, 0.0, 20.0, 20.0], "landmarks": [[1.0, 1.0]] * 5, "score": 1.0}
    recorded(output, output_sha256=digest, faces=[face], zero_shot_layer=json.dumps({"eta": 11 / 255}))
    assert "at x 5, y 3, bound 18.0/255" in verify(output).faults[0]


def test_figures_that_are_not_the_files(output: Storage) -> None:
    row = first_photo(output)
    recorded(output, psnr=row["psnr"] + 0.5)
    assert verify(output).faults[0] == f"{row['output_key']}: its psnr is {row['psnr']}, recorded {row['psnr'] + 0.5}"
    recorded(output, psnr=row["psnr"], linf=18 / 255)
    assert verify(output).faults[0].endswith(f"recorded {18 / 255}")
    data = (open_storage(row["source_uri"].rpartition("/")[0])).get("1.png")
    data = encode_png(decode(data, max_pixels=10**6).pixels)
    output.put(row["output_key"], data)
    recorded(output, output_sha256=hashlib.sha256(data).hexdigest())
    assert "its linf is 0.0, recorded" in verify(output).faults[0]


def test_a_source_that_changed_is_not_compared(output: Storage, tmp_path: Path) -> None:
    open_storage(tmp_path / "in").put("0/1.png", b"another photo")
    found = verify(output)
    assert (found.compared, found.faults) == (1, [])


def test_orphans_and_manifests_that_lack_photos(output: Storage) -> None:
    output.put("photos/ann/left.png", b"x")
    output.delete("manifest/photos.parquet")
    found = verify(output)
    assert found.orphans == ["photos/ann/left.png"]
    assert found.faults == ["manifest/photos.parquet: is missing; run `dladiff finalise`"]
    output.put("manifest/photos.parquet", b"no parquet")
    assert "cannot be read" in verify(output).faults[0]


@pytest.mark.parametrize("key", ["manifest/photos.parquet", "manifest/identities.parquet"])
def test_manifests_that_say_something_else(output: Storage, key: str) -> None:
    rows = pq.read_table(io.BytesIO(output.get(key)))
    place = rows.schema.get_field_index("status")
    changed = rows.set_column(place, rows.schema.field(place), pa.array(["skipped"] * len(rows)))
    file = io.BytesIO()
    pq.write_table(changed, file)
    output.put(key, file.getvalue())
    (fault,) = verify(output).faults
    assert fault == f"{key}: {len(rows)} rows are not what the records say; run `dladiff finalise`"
    output.delete(key)
    assert verify(output).faults == [f"{key}: is missing; run `dladiff finalise`"]
    write_manifest(output, force=True)
    assert verify(output).faults == []


def test_a_photo_that_failed_alone_is_taken_up_again(tmp_path: Path) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png", "broken.png"], "bob": ["1.png"]})
    assert [row["status"] for row in failures.listed(output, Retry(()))] == ["photo"]
    assert failures.forget(output, Retry(("no such reason",))) == 0
    assert failures.forget(output, Retry(())) == 1
    index = records.read_index(output)
    assert {name: row.key for (name, _), row in index.done.items()} == {"ann": "", "bob": "k"}
    assert failures.listed(output, Retry(())) == []
    with Lease(output), pytest.raises(StorageError, match="another run writes"):
        failures.forget(output, Retry(()))


def test_what_is_no_record_is_ignored_or_reported(output: Storage) -> None:
    output.put("done/.DS_Store", b"\0")
    output.put("failed/notes.txt", b"x")
    assert verify(output).faults == []
    output.put("done/zoe.json", b"{}")
    photos = len(list(output.list("photos/")))
    output.put("photos/ann/x.png", b"")
    found = verify(output)
    (fault,) = found.faults
    assert fault.startswith(f"{output.uri_of('done/zoe.json')} is no record: it has no identity")
    assert (found.photos, found.orphans) == (photos, ["photos/ann/x.png"])


def test_failures_of_a_reason_are_forgotten_with_their_starts(output: Storage) -> None:
    for name, reason in (("bob", "out of memory"), ("eve", "no face")):
        record = {"identity": name, "part": 0, "parts": 1, "key": "k", "status": "failed", "reason": reason}
        records.fail(output, record | {"photos": []})
        records.write_start(output, (name, 0), "k", "r")
    assert [row["identity"] for row in failures.listed(output, Retry(()))] == ["bob", "eve"]
    assert failures.forget(output, Retry(("memory",))) == 1
    assert [row["identity"] for row in failures.listed(output, Retry(()))] == ["eve"]
    assert [entry.key.split("/")[1] for entry in output.list("starts/")] == ["eve"]


def test_a_displaced_face_has_no_bound_and_everything_else_has(output: Storage) -> None:
    """The bound holds against the displaced photo, which is not stored; figures are of the original."""
    row = first_photo(output)
    pixels = np.array(decode(output.get(row["output_key"]), max_pixels=10**6).pixels)
    pixels[3, 5] = np.where(pixels[3, 5] > 127, 0, 255)
    data = encode_png(pixels)
    output.put(row["output_key"], data)
    source = decode(open_storage(row["source_uri"].rpartition("/")[0]).get("1.png"), max_pixels=10**6).pixels
    figures = {"linf": quality.linf(pixels, source), "psnr": quality.psnr(pixels, source)}
    changes = figures | {"output_sha256": hashlib.sha256(data).hexdigest(), "faces": []}
    for box, fault in (([4, 2, 8, 6], ""), ([-3, -3, 10**6, 10**6], ""), ([6, 2, 8, 6], "at x 5, y 3, bound 12.0/255")):
        recorded(output, **changes, geometry={"largest": 1.0, "box": box})
        faults = [line for line in verify(output).faults if line.startswith("photos/")]
        assert bool(faults) == bool(fault) and fault in "".join(faults)
    for forged in (
        {"largest": 1.0, "box": [1, 2, 3]},
        {"largest": 1.0},
        {"box": [0.5] * 4},
        "all",
        {"box": [None] * 4},
    ):
        recorded(output, **changes, geometry=forged)
        assert "geometry" in verify(output).faults[0]
