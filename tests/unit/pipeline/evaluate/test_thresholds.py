"""Thresholds in an evaluation: options, files, tables; `dladiff calibrate` on real files with a fake evaluator."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from dladiff.errors import ConfigError
from dladiff.evaluation.verification import shipped_calibrations
from pipeline.cli.main import main
from pipeline.evaluate.config import encoder_name
from pipeline.evaluate.driver import evaluate
from pipeline.evaluate.results import write_results
from pipeline.evaluate.thresholds import MAX_BYTES, thresholds_of
from tests.support.evaluated import Mean, configured
from tests.support.outputs import protected_output
from tests.unit.pipeline.evaluate.conftest import Evaluated

Evaluation = Callable[..., Evaluated]
SHIPPED = {one.encoder: one.threshold for one in shipped_calibrations()}
ENCODERS = [{"name": one.encoder, "sha256": one.sha256} for one in shipped_calibrations()]


def stored(path: Path, **changes: Any) -> Path:
    """Write a calibration of the fake encoder."""
    path.write_text(json.dumps({"encoders": [shipped_calibrations()[0].to_dict() | {"sha256": "0"} | changes]}))
    return path


def test_a_threshold_is_the_users_else_the_files_else_the_packages(tmp_path: Path) -> None:
    config = configured(tmp_path)
    found, lines = thresholds_of(config, [*ENCODERS, {"name": "other", "sha256": "9"}])
    assert found == SHIPPED
    assert "40 people" in lines[0] and "not measured: verification by other" in lines[-1]
    own = stored(tmp_path / "own.json", sha256=ENCODERS[0]["sha256"], threshold=0.7)
    config = config.replaced(calibrations=(str(own),), thresholds={"residual": 0.25})
    found, lines = thresholds_of(config, ENCODERS)
    assert found == SHIPPED | {"mobile": 0.7, "residual": 0.25}
    assert any("residual: cosine 0.250 or more, given by --threshold" in line for line in lines)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("embedded:mobile", "mobile"),
        ("/packs/buffalo_l/", "buffalo_l"),
        ("buffalo_l", "buffalo_l"),
        ("a/b/rec.v2.onnx", "rec.v2"),
        ("clip:/models/clip-large", "clip-large"),
    ],
)
def test_an_encoders_name_is_that_of_the_tables(option: str, name: str) -> None:
    assert encoder_name(option) == name


@pytest.mark.parametrize(
    ("thresholds", "fault"),
    [
        ({"mobil": 0.3}, "'mobil' is unknown, did you mean 'mobile'"),
        ({"mobile": 1.5}, "1.5 is more than 1"),
        ({"mobile": "x"}, "float"),
    ],
)
def test_a_wrong_threshold_is_refused(tmp_path: Path, thresholds: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, thresholds=thresholds)
    assert "--threshold" in str(error.value)
    assert fault.split(",")[0] in str(error.value)


@pytest.mark.parametrize("content", [None, b"{}", b"\xff\xfe", b" " * (MAX_BYTES + 1)])
def test_a_file_that_is_no_calibration_ends_the_command_before_any_row(tmp_path: Path, content: bytes | None) -> None:
    protected_output(tmp_path, {"ann": ["1.png"]})
    file = tmp_path / "c.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="--calibration"):
        evaluate(configured(tmp_path, calibrations=(str(file),)), dry_run=True)


def test_tables_name_the_threshold_or_what_is_missing(evaluate_once: Evaluation, tmp_path: Path) -> None:
    config, plan, results = evaluate_once({"ann": [f"{i}.png" for i in range(6)]})
    write_results(results, config, plan)
    text = results.get("tables.md").decode()
    assert "not measured: verification by fake (no threshold" in text
    assert "verified fake" not in text
    given = config.replaced(calibrations=(str(stored(tmp_path / "c.json", threshold=0.5)),))
    write_results(results, given, plan)
    text = results.get("tables.md").decode()
    assert "verification by fake: cosine 0.500" in text
    assert "| verified fake |" in text and "| photo verified fake |" in text
    rows = pq.read_table(io.BytesIO(results.get("results.parquet"))).to_pylist()
    attacked = next(r for r in rows if (r["condition"], r["attack"]) == ("clean", "dreambooth"))
    assert attacked["similarity"][0]["verified"] == 0.75  # every fourth picture is black
    alone = next(r for r in rows if (r["condition"], r["attack"]) == ("clean", "encoder_only"))
    assert alone["similarity"][0]["photo_verified"] == 1
    assert alone["similarity"][0]["photo_reference"] > 0.9


def test_a_persons_only_photos_have_no_reference(evaluate_once: Evaluation, tmp_path: Path) -> None:
    config, plan, results = evaluate_once({"ann": ["1.png"]})
    config = config.replaced(calibrations=(str(stored(tmp_path / "c.json", threshold=0.5)),))
    write_results(results, config, plan)
    rows = pq.read_table(io.BytesIO(results.get("results.parquet"))).to_pylist()
    alone = next(r for r in rows if r["attack"] == "encoder_only")
    assert alone["similarity"][0]["photo_verified"] is None


def test_rows_of_an_earlier_version_are_shown_without_the_new_columns(
    evaluate_once: Evaluation, tmp_path: Path
) -> None:
    config, plan, results = evaluate_once({"ann": [f"{i}.png" for i in range(6)]})
    for row in plan.rows:
        key = f"rows/{row['key']}.json"
        record = json.loads(results.get(key))
        for photo in record["protected"]:
            del photo["reference"]
        results.put(key, json.dumps(record).encode())
    config = config.replaced(calibrations=(str(stored(tmp_path / "c.json", threshold=0.5)),))
    assert len(write_results(results, config, plan)) == len(plan.rows)
    rows = pq.read_table(io.BytesIO(results.get("results.parquet"))).to_pylist()
    assert {r["similarity"][0]["photo_verified"] for r in rows} == {None}


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve people of four photos of one colour each; one photo is black, one is no photo."""
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / "people" / f"p{i:02d}"
        folder.mkdir(parents=True)
        colour = rng.integers(1, 255, 3)
        for j in range(4):
            pixels = np.clip(colour + rng.integers(-6, 6, (64, 64, 3)), 1, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{j}.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "people" / "p00" / "black.png")
    (tmp_path / "people" / "p01" / "damaged.jpg").write_bytes(b"\xff\xd8\xff no photo")
    monkeypatch.setattr("dladiff.evaluation.evaluator.load_evaluator", lambda encoders: Mean())
    return tmp_path / "people"


def called(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["calibrate", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_calibrate_writes_what_evaluate_reads(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "c.json"
    common = ("--people", str(people), "--evaluator", "embedded:mobile", "--out", str(out))
    code, text, err = called(*common, "--false-accept-rate", "0.01", "--source", "colours | of <b>")
    assert code == 0
    assert "fake: cosine" in text and "p00: 4 photos" in err and "damaged.jpg" not in text
    (one,) = json.loads(out.read_text())["encoders"]
    assert (one["people"], one["photos"], one["without_face"]) == (12, 48, 2)
    assert (one["impostor_comparisons"], one["false_accepts"]) == (48 * 11, 5)
    assert one["true_accept_rate"] > 0.9
    found, lines = thresholds_of(configured(tmp_path, calibrations=(str(out),)), [{"name": "fake", "sha256": "0"}])
    assert found == {"fake": one["threshold"]}
    assert "5 of 528 comparisons" in lines[0]
    assert json.loads(called(*common, "--false-accept-rate", "0.01", "--json")[1])["encoder"] == "fake"


def test_calibrate_refuses_too_few_people_and_writes_nothing(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    code, _, err = called("--people", str(people), "--evaluator", "embedded:mobile", "--out", str(out))
    assert code == 2
    assert "528 comparisons of different people; a false accept rate of 0.001 needs at least 1,000" in err
    assert not out.exists()
    code, _, err = called("--people", str(tmp_path / "none"), "--evaluator", "embedded:mobile", "--out", str(out))
    assert code == 3
