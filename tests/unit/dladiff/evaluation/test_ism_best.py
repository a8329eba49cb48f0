"""Best-of-N ISM against numbers computed by hand."""

from dladiff.evaluation.paper_layout import all_tables
from dladiff.evaluation.summaries import group
from pipeline.evaluate.results import flat_rows
from tests.unit.dladiff.evaluation.test_tables import PROMPT, by_title, column, evaluation, record

ROWS = [
    record("ann", "clean", "dreambooth", [0.1, 0.7, None], seed=0),
    record("ann", "clean", "dreambooth", [0.3, 0.2, 0.5], seed=1),
    record("bob", "clean", "dreambooth", [None, None, -0.2]),
]


def test_each_training_counts_its_best_picture_and_people_make_the_interval() -> None:
    found = group(ROWS, condition="clean")
    assert found.values("ism_best", "e", PROMPT) == {"ann": [0.7, 0.5], "bob": [0.0]}
    estimate = found.estimate("ism_best", "e", PROMPT)
    assert estimate is not None
    assert (round(estimate.value, 6), estimate.n, estimate.people) == (0.4, 3, 2)  # (.7 + .5 + 0) / 3
    assert (estimate.low, estimate.high) == (0.0, 0.6)  # bob twice, ann twice: with two people at most their range


def test_it_has_its_columns() -> None:
    tables = all_tables(evaluation(ROWS, conditions=("clean",)))
    assert column(by_title(tables, "Table 1"), "ISM best e*")["clean"] == "0.400 (0.000 to 0.600), n 3"
    (row,) = flat_rows(ROWS[0] | {"evaluator": [{"name": "e"}]})  # type: ignore[misc]
    assert row["similarity"][0]["ism_best"] == 0.7
