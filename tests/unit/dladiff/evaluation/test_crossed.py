"""The bootstrap over people and raters, where its answer is known."""

import numpy as np
import pytest

from dladiff.evaluation.crossed import mean_over_people_and_raters
from dladiff.evaluation.intervals import mean_over_people

PEOPLE = [f"p{i}" for i in range(8)]
RATERS = [f"r{i}" for i in range(6)]


def test_with_one_rater_it_is_the_bootstrap_over_people() -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.integers(0, 2, 5).astype(float).tolist() for name in PEOPLE}
    found = mean_over_people_and_raters([(name, "r", v) for name, own in values.items() for v in own])
    other = mean_over_people(values)
    assert found is not None and other is not None
    assert (found.value, found.n, found.people) == (other.value, 40, 8)
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.05)


def test_raters_who_differ_widen_the_interval() -> None:
    alike = [(p, r, float(i % 2)) for i, p in enumerate(PEOPLE) for r in RATERS]
    differ = [(p, r, float((i + j) % 2)) for i, p in enumerate(PEOPLE) for j, r in enumerate(RATERS)]
    strict = [(p, r, float(j % 2)) for p in PEOPLE for j, r in enumerate(RATERS)]
    widths = []
    for answers in (alike, differ, strict):
        found = mean_over_people_and_raters(answers)
        assert found is not None and found.low is not None and found.high is not None
        assert found.value == 0.5
        widths.append(found.high - found.low)
    assert widths[2] > 0.5  # all depends on the rater
    assert widths[0] > 0.5  # all depends on the person
    assert widths[1] < widths[0]  # no person and no rater differs from the others


def test_equal_answers_and_none() -> None:
    same = mean_over_people_and_raters([(p, r, 1.0) for p in PEOPLE for r in RATERS])
    assert same is not None and (same.low, same.high) == (1.0, 1.0)
    alone = mean_over_people_and_raters([("a", "r", 1.0), ("a", "r", 0.0)])
    assert alone is not None and (alone.value, alone.low, alone.high) == (0.5, None, None)
    assert mean_over_people_and_raters([]) is None
