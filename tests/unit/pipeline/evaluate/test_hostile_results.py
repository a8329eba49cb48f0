"""Damaged and foreign files in an evaluation's results are left out with a warning."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dladiff.errors import DamagedError, StorageError
from dladiff.evaluation import summaries
from pipeline.evaluate.mos import faces_of
from pipeline.evaluate.ratings import COLUMNS, add_rating, keep_ratings, read_ratings
from pipeline.evaluate.results import _load, collect, flat_rows, write_results
from pipeline.records.schema import RESULTS, table
from tests.unit.pipeline.evaluate.conftest import Evaluated
from tests.unit.pipeline.run.test_hostile_output import HOSTILE, OBJECTS, changed, positions


@pytest.fixture
def made(evaluate_once: Callable[..., Evaluated], monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    monkeypatch.setattr(summaries, "FID_DRAWS", 4)  # of 200: each table is made many times here
    return evaluate_once({"ann": ["1.png", "2.png"], "bob": ["1.png"]}, kept=1)


def test_any_value_in_any_place_of_a_row_costs_that_row_alone(made: Evaluated) -> None:
    config, plan, results = made
    key = f"rows/{next(row['key'] for row in plan.rows if row['attack'] == 'dreambooth')}.json"
    record = json.loads(results.get(key))
    accepted: dict[tuple[Any, ...], str] = {}
    for path in positions(record):
        for text in HOSTILE:
            (Path(config.results) / key).write_text(changed(record, path, text))
            try:
                found = _load(results, key)
            except DamagedError:
                continue
            table(list(flat_rows(found)), RESULTS)
            accepted.setdefault(path, changed(record, path, text))
    for whole in accepted.values():
        results.put(key, whole.encode())
        assert len(write_results(results, config, plan)) == len(plan.rows)
        faces_of(results)


@pytest.mark.parametrize("data", OBJECTS)
def test_rows_that_are_no_record_are_left_out(made: Evaluated, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    config, plan, results = made
    results.put(f"rows/{plan.rows[0]['key']}.json", data)
    assert len(write_results(results, config, plan)) == len(plan.rows) - 1
    assert "delete it" in caplog.text
    results.put("results.parquet", data)
    with pytest.raises(StorageError, match=r"results\.parquet cannot be read"):
        faces_of(results)


def test_a_row_names_files_of_its_own_alone(made: Evaluated) -> None:
    _, plan, results = made
    key, other = (row["key"] for row in [row for row in plan.rows if row["attack"] == "dreambooth"][:2])
    record = json.loads(results.get(f"rows/{key}.json"))
    (prompt,) = record["faces"]
    changes = ({"features": f"features/{other}.npz"}, {"features": "ratings.csv"}, {"key": other})
    for change in (*changes, {"faces": {prompt: [f"faces/{other}/0-00.png"]}}, {"faces": {"x": ["ratings.csv"]}}):
        results.put(f"rows/{key}.json", json.dumps(record | change).encode())
        assert len(collect(results, plan)) == len(plan.rows) - 1, change


@pytest.mark.parametrize("shape", [(3,), (3, 4, 2), (2, 7), (0, 0)])
def test_features_of_another_shape_give_no_fid(made: Evaluated, shape: tuple[int, ...]) -> None:
    config, plan, results = made
    key = list(results.list("features/"))[-1].key
    for values in (np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32), np.full(shape, "x")):
        out = io.BytesIO()
        np.savez(out, values)
        results.put(key, out.getvalue())
        assert len(write_results(results, config, plan)) == len(plan.rows)


def test_a_rating_that_is_none_costs_itself_and_stays_in_the_file(
    made: Evaluated, caplog: pytest.LogCaptureFixture
) -> None:
    config, plan, results = made
    good = dict(zip(COLUMNS, ("rita", "f", "ann", "dreambooth", "dladiff", "p", "4", "t"), strict=True))
    add_rating(results, good)
    before = results.get("ratings.csv")
    bad = b'eve,f2\r\nmal,"f3",a,b,c,d,9,t\r\ntoo,many,a,b,c,d,5,t,x,y'
    results.put("ratings.csv", before + bad)
    assert [row["rater"] for row in read_ratings(results)] == ["rita"]
    assert "left out 3 rows" in caplog.text
    add_rating(results, good | {"face": "f4"})
    assert [row["face"] for row in read_ratings(results)] == ["f", "f4"]
    rows = list(csv.reader(io.StringIO(results.get("ratings.csv").decode())))
    assert [row[:2] for row in rows[3:]] == [["eve", "f2"], ["mal", "f3"], ["too", "many"]]
    keep_ratings(results, lambda name: True)  # whose they are is not known
    assert b"mal" not in results.get("ratings.csv") and len(read_ratings(results)) == 2
    for text in (b"\xff\xfe", b"rater,score\r\n", b'"' + b"x" * 200_000):
        results.put("ratings.csv", text)
        with pytest.raises(DamagedError, match="repair or delete it"):
            read_ratings(results)
        write_results(results, config, plan)
