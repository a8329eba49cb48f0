"""The sign-flip test against scipy and against counting by hand; Holm's correction against its published example."""

import numpy as np
import pytest
from scipy import stats

from dladiff.evaluation.paper_layout import all_tables
from dladiff.evaluation.permutation import holm, sign_flip_p
from tests.unit.dladiff.evaluation.test_tables import by_title, column, evaluation, record


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("people", [3, 10])
def test_it_agrees_with_scipy(people: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.4, 1, people)
    other = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided", vectorized=False
    )
    assert sign_flip_p(values.tolist()) == pytest.approx(float(other.pvalue))


def test_counted_by_hand() -> None:
    assert sign_flip_p([0.1] * 10) == 2 / 1024
    assert sign_flip_p([1, 2, 3]) == 2 / 8  # only all signs equal reach 6
    assert sign_flip_p([1, 2, -3]) == 1.0  # the sum is 0
    assert sign_flip_p([3, 1, -1]) == 6 / 8  # |sum| is 3 or more for all but (3, -1, -1) and its opposite
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.3]) == 1.0
    assert sign_flip_p([]) is None


def test_sums_in_another_order_are_ties() -> None:
    """.1 + .2 + .3 differs from .3 + .2 + .1 in the last bit."""
    values = [0.1, 0.2, 0.3, 0.7, -0.1, 0.6]
    assert sign_flip_p(values) == sign_flip_p(values[::-1]) == sign_flip_p([-v for v in values])


def test_many_people_are_drawn_and_never_give_0() -> None:
    found = sign_flip_p([0.1] * 40)
    assert found == 1 / (2**16 + 1)
    assert sign_flip_p([0.1] * 40) == found
    noise = np.random.default_rng(0).normal(0.2, 1, 30)
    close = stats.ttest_1samp(noise, 0).pvalue
    assert sign_flip_p(noise.tolist()) == pytest.approx(close, abs=0.02)


def test_holm() -> None:
    """The example of Wikipedia's article: .01, .04, .03, .005."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_differences_have_corrected_p_values() -> None:
    rows = []
    for i in range(6):
        rows.append(record(f"p{i}", "clean", "dreambooth", [0.6 + 0.01 * i]))
        rows.append(record(f"p{i}", "aspl", "dreambooth", [0.2 + (0.02 if i % 2 else -0.02)]))
        rows.append(record(f"p{i}", "dladiff", "dreambooth", [0.2]))
    table = by_title(all_tables(evaluation(rows, conditions=("clean", "aspl", "dladiff"))), "dladiff less each method")
    found = column(table, "ISM all e*")
    assert found["clean"].endswith(", p 0.062")  # 2 / 64, twice
    assert found["aspl"].endswith(", p 1.000")
    assert "corrected by Holm for the 2 methods" in table.note
