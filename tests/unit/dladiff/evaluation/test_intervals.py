"""Estimates: against scipy's bootstrap, and closed forms of clustered data."""

import numpy as np
import pytest
from scipy import stats

from dladiff.evaluation.intervals import mean_over_people, paired_change, statistic_over_people, tail


def test_one_value_a_person_is_scipys_percentile_bootstrap_further_out() -> None:
    sample = np.random.default_rng(1).normal(0.5, 0.2, 30)
    ours = mean_over_people({f"{i:02d}": [v] for i, v in enumerate(sample)}, draws=20_000)
    theirs = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        confidence_level=1 - 2 * tail(30),
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours is not None
    assert ours.value == pytest.approx(sample.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.004)
    assert ours.high == pytest.approx(theirs.high, abs=0.004)
    assert (ours.n, ours.people) == (30, 30)


def test_people_are_drawn_not_images() -> None:
    """100 equal images of a person say as much as one: the interval is that of ten people, not of a thousand images."""
    means = np.random.default_rng(3).normal(0, 1, 10)
    few = mean_over_people({str(i): [m] for i, m in enumerate(means)})
    many = mean_over_people({str(i): [m] * 100 for i, m in enumerate(means)})
    assert few is not None
    assert many is not None
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
    assert many.n == 1000
    spread = means.std() / np.sqrt(10)
    assert few.high is not None
    assert few.low is not None
    assert few.high - few.low == pytest.approx(2 * stats.t.ppf(0.975, 9) / np.sqrt(0.9) * spread, rel=0.15)


@pytest.mark.parametrize(("people", "minimum"), [(6, 0.88), (10, 0.91), (20, 0.93)])
def test_the_interval_holds_the_mean_about_as_often_as_it_says(people: int, minimum: float) -> None:
    rng = np.random.default_rng(5)
    held = 0
    for trial in range(400):
        found = mean_over_people({str(i): [v] for i, v in enumerate(rng.normal(size=people))}, draws=500, seed=trial)
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    assert held / 400 >= minimum


def test_uneven_people_weigh_by_their_images() -> None:
    found = mean_over_people({"ann": [1.0] * 3, "bob": [0.0]})
    assert found is not None
    assert found.value == 0.75
    assert (found.low, found.high) == (0.0, 1.0)


def test_nothing_and_one_person_have_no_interval() -> None:
    assert mean_over_people({"ann": []}) is None
    one = mean_over_people({"ann": [0.2, 0.4], "bob": []})
    assert one is not None
    assert (one.value, one.low, one.high, one.people) == (pytest.approx(0.3), None, None, 1)
    assert statistic_over_people([], len, 0, draws=3) is None


def test_the_order_of_people_and_the_seed_decide_nothing_else() -> None:
    values = {str(i): [float(v)] for i, v in enumerate(np.random.default_rng(0).normal(size=12))}
    turned = dict(reversed(values.items()))
    assert mean_over_people(values) == mean_over_people(turned)
    assert mean_over_people(values, seed=1) != mean_over_people(values, seed=2)


def test_paired_change_cancels_what_people_have_in_common() -> None:
    rng = np.random.default_rng(0)
    level = {str(i): rng.normal(0, 10) for i in range(8)}
    clean = {name: [v, v + 1] for name, v in level.items()}
    protected = {name: [v + 0.5 - 0.1] for name, v in level.items()} | {"only here": [9.0]}
    change = paired_change(protected, clean)
    assert change is not None
    assert (change.value, change.low, change.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert change.people == 8


def test_any_statistic() -> None:
    found = statistic_over_people([1.0, 2.0, 9.0], lambda people: float(np.median(people)), 3, draws=400)
    assert found is not None
    assert (found.value, found.low, found.high) == (2.0, 1.0, 9.0)
