"""Krippendorff's alpha against the worked example of its own paper, and its limits."""

import pytest

from dladiff.evaluation.ratings import SCALE, krippendorff_alpha

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C to E: four observers, twelve units
OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
UNITS = {str(i): [float(r[i]) for r in OBSERVERS if r[i] != "."] for i in range(12)}


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_published_example(metric: str, alpha: float) -> None:
    assert krippendorff_alpha(UNITS, metric) == pytest.approx(alpha, abs=5e-4)  # type: ignore[arg-type]


def test_limits() -> None:
    assert krippendorff_alpha({"a": [1, 1], "b": [5, 5, 5]}) == 1.0
    assert krippendorff_alpha({"a": [1], "b": [5]}) is None
    assert krippendorff_alpha({"a": [3, 3], "b": [3, 3]}) is None
    opposed = krippendorff_alpha({"a": [1, 5], "b": [5, 1]})
    assert opposed is not None
    assert opposed < 0


def test_the_scale_is_the_papers() -> None:
    assert sorted(SCALE) == [1, 2, 3, 4, 5]
