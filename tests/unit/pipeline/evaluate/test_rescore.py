"""`--rescore`: second scores of generated pictures, in columns of their own, without a change for other evaluations."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dladiff.errors import ConfigError
from pipeline.evaluate.config import missing
from pipeline.evaluate.plan import make_plan
from pipeline.evaluate.results import write_results
from tests.support.evaluated import configured
from tests.support.outputs import protected_output
from tests.unit.pipeline.evaluate.conftest import Evaluated

Evaluation = Callable[..., Evaluated]
PROMPT = "a photo of sks person"


def test_pictures_are_scored_again_after_the_preprocessing(evaluate_once: Evaluation) -> None:
    """The fake blur makes every picture black, in which no face is found."""
    config, plan, results = evaluate_once({"ann": ["1.png", "2.png"]}, rescores=("blur",))
    row = next(r for r in plan.rows if (r["attack"], r["condition"]) == ("dreambooth", "dladiff"))
    pictures = json.loads(results.get(f"rows/{row['key']}.json"))["images"][PROMPT]
    assert [p["face"] for p in pictures] == [True, True, True, False]
    assert [p["rescored"] for p in pictures] == [{"blur": {"face": False, "ism": {"fake": None}}}] * 4
    write_results(results, config.replaced(evaluators=("fake",), thresholds={"fake": 0.5}), plan)
    text = results.get("tables.md").decode()
    for head in ("FDR after blur", "ISM all fake after blur", "ISM best fake after blur", "verified fake after blur"):
        assert f"| {head} |" in text
    assert "| ISM all fake after blur from clean |" in text
    assert "second scores: each generated picture after blur" in text
    table = pq.read_table(io.BytesIO(results.get("results.parquet"))).to_pylist()
    again = next(r for r in table if r["key"] == row["key"])["rescored"]
    assert [(r["preprocessing"], r["encoder"], r["fdr"], r["ism_all"]) for r in again] == [("blur", "fake", 0, 0)]
    assert [r["rescored"] for r in table if r["attack"] == "encoder_only"] == [[]] * 3


def test_rows_without_it_stay_as_they_are(evaluate_once: Evaluation) -> None:
    config, plan, results = evaluate_once({"ann": ["1.png"]})
    assert all("rescored" not in results.get(e.key).decode() for e in results.list("rows/"))
    write_results(results, config, plan)
    assert "after" not in results.get("tables.md").decode().split("## ", 1)[1].replace("photos after", "")


def test_only_attacked_rows_get_new_keys(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png"]})
    plain, again, both, swapped = (
        {(r["attack"], r["condition"]): r["key"] for r in make_plan(configured(tmp_path, rescores=names)).rows}
        for names in ((), ("blur",), ("blur", "jpeg75"), ("jpeg75", "blur"))
    )
    changed = {attack for (attack, condition), key in plain.items() if again[attack, condition] != key}
    assert changed == {"dreambooth"}
    assert both == swapped != again


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    for names, fault in (
        (("blurr",), "'blurr' is unknown"),
        (("none",), "'none' is unknown"),
        (("blur", "blur"), "once"),
    ):
        with pytest.raises(ConfigError) as error:
            configured(tmp_path, rescores=names)
        assert fault in str(error.value)
    (fault,) = missing(configured(tmp_path, rescores=(f"sdedit={tmp_path / 'none'}",)))
    assert fault.startswith("--rescore: nothing at")
