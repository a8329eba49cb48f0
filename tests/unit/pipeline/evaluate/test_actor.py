"""One row of an evaluation, with fakes for the networks: measurements, storage, failures."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluate.actor import _protected_indices
from pipeline.evaluate.plan import make_plan
from pipeline.sources.decode import decode
from pipeline.storage.open import open_storage
from tests.support.evaluated import actor, configured, evaluated
from tests.support.outputs import protected_output

PROMPT = "a photo of sks person"


def rows(config: Any, **where: Any) -> list[dict[str, Any]]:
    return [row for row in make_plan(config).rows if all(row[k] == v for k, v in where.items())]


def one(worker: Any, row: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(worker({"work": json.dumps(row)})["result"])
    return result


def stored(results: Any, row: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(results.get(f"rows/{row['key']}.json"))
    return record


def test_an_attack_is_measured_and_stored(tmp_path: Path) -> None:
    _, plan, results = evaluated(tmp_path, {"ann": ["1.png", "2.png"]}, kept=2)
    row = next(r for r in plan.rows if r["attack"] == "dreambooth" and r["condition"] == "dladiff")
    record = stored(results, row)
    assert (record["status"], record["photos"], record["dropped"]) == ("done", 2, 0)
    pictures = record["images"][PROMPT]
    assert [p["face"] for p in pictures] == [True, True, True, False]
    assert pictures[0]["ism"]["fake"] > 0.95
    assert pictures[3]["ism"]["fake"] is None
    assert record["reference_set"] == "originals of the protected photos"
    faces = record["faces"][PROMPT]
    assert len(faces) == 2
    assert decode(results.get(faces[0])).pixels.shape == (64, 64, 3)
    with np.load(io.BytesIO(results.get(record["features"]))) as file:
        assert file["arr_0"].shape == (4, 3)
    assert list(results.list("starts/")) == []
    assert list(results.list("failed/")) == []


def test_noise_has_the_mean_squared_error_of_the_protection(tmp_path: Path) -> None:
    _, plan, results = evaluated(tmp_path, {"ann": ["1.png"]})
    found = {r["condition"]: stored(results, r) for r in plan.rows if r["attack"] == "encoder_only"}
    quality = {name: record["protected"][0]["quality"] for name, record in found.items()}
    assert quality["clean"]["psnr"] is None
    assert quality["dladiff"]["linf"] == pytest.approx(1 / 255)  # the fake protector adds one level
    assert quality["noise"]["psnr"] == pytest.approx(quality["dladiff"]["psnr"], abs=0.05)
    assert found["clean"]["protected"][0]["pro"]["fake"] == pytest.approx(1)
    assert found["clean"]["features"]
    assert found["dladiff"]["features"] is None


def test_an_attacker_without_a_face_has_no_photo(tmp_path: Path) -> None:
    _, plan, results = evaluated(tmp_path, {"ann": ["1.png", "2.png"]}, preprocessings=("blur",))
    attacked = next(r for r in plan.rows if r["attack"] == "dreambooth")
    assert (stored(results, attacked)["status"], stored(results, attacked)["dropped"]) == ("no_photo", 2)
    seen = next(r for r in plan.rows if r["attack"] == "encoder_only" and r["preprocessing"] == "blur")
    record = stored(results, seen)
    assert (record["status"], record["dropped"]) == ("done", 2)
    assert record["protected"][0] == {"original_face": True, "face": False, "pro": {"fake": None}, "reference": {}}


def test_a_row_of_fewer_photos_than_the_others_is_a_failed_row(tmp_path: Path) -> None:
    """A row fails if a photo cannot be read; a later run measures it with all photos."""
    protected_output(tmp_path, {"ann": ["1.png", "2.png", "3.png"]})
    config = configured(tmp_path)
    (row,) = rows(config, attack="encoder_only", condition="dladiff")
    source = tmp_path / "in" / "0" / "1.png"
    protected = Path(row["photos"][1]["protected"]["dladiff"]["output_uri"])
    for file, reason in ((source, "another checksum"), (protected, "no such file")):
        kept = file.read_bytes()
        file.unlink()
        if file == source:
            file.write_bytes(b"another photo")
        result = one(actor(config), row)
        assert (result["status"], reason in result["reason"]) == ("failed", True)
        file.write_bytes(kept)
    assert one(actor(config), row)["status"] == "done"
    results = open_storage(config.results)
    assert len(stored(results, row)["protected"]) == 3
    assert list(results.list("failed/")) == []


def test_a_reference_that_is_gone_is_left_out(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": [f"{i}.png" for i in range(6)]})
    config = configured(tmp_path)
    (row,) = rows(config, attack="dreambooth", condition="dladiff")
    (tmp_path / "in" / "0" / "5.png").unlink()
    assert one(actor(config), row)["status"] == "done"
    assert stored(open_storage(config.results), row)["references"] == 1


def test_a_bug_is_a_failed_row_and_not_the_end(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png"]})
    config = configured(tmp_path, attacks=("textual_inversion",))
    row = rows(config, attack="textual_inversion")[0]
    result = one(actor(config), row)
    assert (result["status"], result["reason"]) == ("failed", "RuntimeError: out of luck")
    results = open_storage(config.results)
    assert "RuntimeError" in json.loads(results.get(f"failed/{row['key']}.json"))["traceback"]
    assert results.tag(f"rows/{row['key']}.json") is None
    assert list(results.list("starts/")) == []


def test_weights_that_are_missing_end_the_run(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png"]})
    config = configured(tmp_path, attacks=("ip_adapter_faceid",))
    assert one(actor(config), rows(config, attack="ip_adapter_faceid")[0])["status"] == "fatal"


def test_a_crash_loop_ends(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png"]})
    config = configured(tmp_path, max_starts=2)
    row, results = rows(config)[0], open_storage(config.results, create=True)
    for i in range(2):
        results.put(f"starts/{row['key']}/{i}.json", json.dumps({"key": row["key"], "run_id": "run"}).encode())
    assert "2 starts" in one(actor(config), row)["reason"]


def test_the_share_is_the_same_for_every_method_and_grows() -> None:
    work = {"photos": [0] * 8, "seed": 1, "identity": "ann"}
    drawn = [_protected_indices(work | {"share": share}) for share in (25, 50, 75, 100)]
    assert [len(places) for places in drawn] == [2, 4, 6, 8]
    assert drawn[0] < drawn[1] < drawn[2] < drawn[3]
    assert len(_protected_indices(work | {"share": 1})) == 1
    assert any(_protected_indices(work | {"share": 25, "seed": s}) != drawn[0] for s in range(2, 9))


def test_unprotected_photos_are_clean(tmp_path: Path) -> None:
    config, plan, _ = evaluated(tmp_path, {"ann": ["1.png", "2.png"]}, shares=(50, 100))
    row = next(r for r in plan.rows if r["share"] == 50 and r["condition"] == "dladiff")
    pairs = actor(config)._photos(row)
    assert sorted(bool((before == after).all()) for before, after in pairs) == [False, True]
