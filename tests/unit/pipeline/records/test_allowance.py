"""allowance: a number of photos or a share of them."""

import pytest

from pipeline.records.allowance import allowance_fault, within


@pytest.mark.parametrize("text", ["0", "5", "1%", "0.5%", "100%", "0%"])
def test_numbers_and_shares_are_taken(text: str) -> None:
    assert allowance_fault(text) is None


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "%", "1 %", "all", "1e3", "\u0661", "1%\n", "9" * 40])
def test_what_is_neither_is_refused(text: str) -> None:
    assert "a number of photos (5) or a share" in str(allowance_fault(text))


def test_a_share_is_of_all_photos() -> None:
    assert within("1%", 3, 300)
    assert not within("1%", 4, 399)
    assert within("100%", 7, 7)
    assert within("0%", 0, 0)
    assert not within("0%", 1, 10)
    assert within("2", 2, 2)
    assert not within("2", 3, 1000)
