"""The outputs of an evaluation: Parquet, tables, sheets; damaged and missing parts; hostile names."""

import io
import json
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dladiff.errors import StorageError
from pipeline.evaluate.ratings import add_rating, opinions, read_ratings
from pipeline.evaluate.results import collect, evaluation, write_results
from tests.support.evaluated import actor
from tests.support.outputs import HOSTILE
from tests.support.pages import Page
from tests.unit.pipeline.evaluate.conftest import Evaluated

Evaluation = Callable[..., Evaluated]
PROMPT = "a photo of sks person"
RATING = {"rater": "a", "face": "f", "identity": "ann", "attack": "dreambooth", "condition": "dladiff"}


def test_rows_tables_and_sheets(evaluate_once: Evaluation) -> None:
    config, plan, results = evaluate_once({"ann": ["1.png", "2.png"], "bob": ["1.png"]})
    records = write_results(results, config, plan)
    assert len(records) == len(plan.rows) == 12
    table = pq.read_table(io.BytesIO(results.get("results.parquet"))).to_pylist()
    row = next(r for r in table if (r["identity"], r["condition"], r["attack"]) == ("ann", "clean", "dreambooth"))
    assert (row["prompt"], row["pictures"], row["fdr"]) == (PROMPT, 4, 0.75)
    assert row["similarity"][0]["ism_all"] == pytest.approx(0.75 * row["similarity"][0]["ism_detected"])
    alone = next(r for r in table if (r["condition"], r["attack"]) == ("dladiff", "encoder_only"))
    assert (alone["prompt"], alone["linf"]) == ("", pytest.approx(1 / 255))
    text = results.get("tables.md").decode()
    assert "## Table 1: dreambooth" in text
    assert "| dladiff | 2 | 0 / 0 / 0 | 8 | 0.750 (0.750 to 0.750) |" in text
    assert "not measured: FID by Inception" in text
    with Image.open(io.BytesIO(results.get("sheets/dreambooth--dladiff.png"))) as sheet:
        assert sheet.size == (768, 220)


def test_a_part_of_the_rows_gives_tables_too(evaluate_once: Evaluation) -> None:
    config, plan, results = evaluate_once({"ann": ["1.png"]})
    gone = [row for row in plan.rows if row["condition"] == "noise"]
    for row in gone:
        results.delete(f"rows/{row['key']}.json")
    names = ("key", "identity", "condition", "attack", "base", "preprocessing", "share", "seed")
    failure = {name: gone[0][name] for name in names} | {"status": "failed", "reason": "x", "traceback": ""}
    results.put(f"failed/{gone[0]['key']}.json", json.dumps(failure).encode())
    for entry in list(results.list("faces/")):
        results.delete(entry.key)
    records = write_results(results, config, plan)
    assert len(records) == len(plan.rows) - 1
    assert "| noise | 0 | 1 / 0 / 0 |" in results.get("tables.md").decode()


def test_the_page_holds_no_markup_of_names_and_no_address(evaluate_once: Evaluation) -> None:
    hostile_prompt = "<img src=x onerror=alert(1)> | \u202e"
    config, plan, results = evaluate_once({HOSTILE: ["1.png"]}, prompts=(hostile_prompt,))
    write_results(results, config, plan)
    page = Page(results.get("tables.html").decode())
    assert page.all("script") == []
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in page.all("img"))
    assert len(page.all("img")) == 3
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "\u202e" not in page.text
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on") or name == "style"]
    assert [d for d in page.all("td") if d.get("class") == "theirs"]


def test_a_second_worker_changes_nothing(evaluate_once: Evaluation) -> None:
    config, plan, results = evaluate_once({"ann": ["1.png"]})
    before = {e.key: e.tag for e in results.list("rows/")}
    for row in plan.rows:
        actor(config)({"work": json.dumps(row)})
    assert {e.key: e.tag for e in results.list("rows/")} == before
    assert len(collect(results, plan)) == len(plan.rows)


def test_records_of_earlier_versions_give_the_same_tables(evaluate_once: Evaluation) -> None:
    config, plan, results = evaluate_once({"ann": ["1.png"]})
    write_results(results, config, plan)
    tables, table = results.get("tables.md"), pq.read_table(io.BytesIO(results.get("results.parquet")))
    for entry in list(results.list("rows/")):
        results.put(entry.key, results.get(entry.key).replace(b'"evaluator": [', b'"judge": ['))
        assert b'"judge"' in results.get(entry.key)
    write_results(results, config, plan)
    assert results.get("tables.md") == tables
    assert pq.read_table(io.BytesIO(results.get("results.parquet"))) == table


def test_ratings_are_kept_and_averaged(evaluate_once: Evaluation) -> None:
    _, _, results = evaluate_once({"ann": ["1.png"]})
    assert read_ratings(results) == []
    for rater, identity, score in (("a", "ann", 1), ('b, "x"\n', "ann", 2), ("a", "bob", 5)):
        add_rating(
            results,
            RATING
            | {
                "rater": rater,
                "identity": identity,
                "face": identity,
                "prompt": PROMPT,
                "score": str(score),
                "time": "t",
            },
        )
    rows = read_ratings(results)
    assert [r["rater"] for r in rows] == ["a", 'b, "x"\n', "a"]
    found = opinions(rows)[("dreambooth", "dladiff", PROMPT)]
    assert found.value == pytest.approx(np.mean([1, 2, 5]))
    assert (found.low, found.high) == (1.5, 5.0)
    assert read_ratings(results)[0]["rater"] == "a"
    results.put("ratings.csv", b"\xef\xbb\xbf" + results.get("ratings.csv"))  # as a spreadsheet saves it
    assert len(read_ratings(results)) == 3


def test_a_face_counts_once_a_rater_and_only_faces_of_these_rows(evaluate_once: Evaluation) -> None:
    config, plan, results = evaluate_once({"ann": ["1.png"]}, kept=1)
    rating = RATING | {"prompt": PROMPT, "score": "5", "time": "t"}
    for _ in range(2):
        add_rating(results, rating)
    assert len(read_ratings(results)) == 1
    records = collect(results, plan)
    assert evaluation(results, config, plan, records).opinions == {}
    (face,) = next(r for r in records if r["faces"] and r["condition"] == "dladiff")["faces"][PROMPT]
    add_rating(results, rating | {"face": face, "score": "2"})
    found = evaluation(results, config, plan, records).opinions
    assert {key: mean.value for key, mean in found.items()} == {("dreambooth", "dladiff", PROMPT): 2.0}


def test_damaged_rows_are_reported_and_damaged_features_give_no_fid(
    evaluate_once: Evaluation, caplog: pytest.LogCaptureFixture
) -> None:
    config, plan, results = evaluate_once({"ann": ["1.png"]})
    for entry in list(results.list("features/"))[:2]:
        results.put(entry.key, b"no archive")
    write_results(results, config, plan)
    results.put(f"rows/{plan.rows[0]['key']}.json", b"{}")
    assert len(write_results(results, config, plan)) == len(plan.rows) - 1
    (message,) = [r.getMessage() for r in caplog.records]
    assert "is no record of an evaluation" in message and "delete it, and it is measured again" in message


@pytest.mark.parametrize("text", [b"rater,score\na,9\n", b"rater,face,score\na,b\n", b"\xff\xfe"])
def test_damaged_ratings_are_reported(evaluate_once: Evaluation, text: bytes) -> None:
    _, _, results = evaluate_once({"ann": ["1.png"]})
    results.put("ratings.csv", text)
    with pytest.raises(StorageError, match=r"ratings\.csv"):
        read_ratings(results)
