"""Which photos and identities a report shows, and its figures, against known answers."""

from typing import Any

import numpy as np

from pipeline.report.data import Series
from pipeline.report.sample import Person, Sample, listed


def row(place: int, **more: Any) -> dict[str, Any]:
    entry = {"encoder": "e", "optimised": True, "before": 1.0, "after": 0.1}
    plain = {"place": place, "status": "protected", "psnr": 40.0, "similarity": [entry], "seconds": [("a", 1.0)]}
    return plain | {"first": True} | more


def test_sample_holds_the_worst_of_each_kind_and_a_seeded_rest() -> None:
    special: dict[int, dict[str, Any]] = {
        3: {"status": "failed"},
        500: {"status": "layer1_only"},
        700: {"psnr": 20.0},
        800: {"seconds": [("a", 1.0), ("b", 99.0)]},
        900: {"similarity": [{"encoder": "e", "optimised": True, "before": 1.0, "after": 0.9}]},
        999: {"psnr": None, "similarity": None, "seconds": None},
    }

    def drawn(seed: int) -> list[int]:
        sample = Sample(10, seed)
        for place in range(1000):
            sample.add(row(place, **special.get(place, {})))
        return [r["place"] for r in sample.rows()]

    assert len(set(drawn(0))) == 10
    assert {3, 500, 700, 800, 900} <= set(drawn(0))
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_a_small_sample_is_everything() -> None:
    sample = Sample(10)
    for place in range(10):
        sample.add(row(place))
    assert sorted(r["place"] for r in sample.rows()) == list(range(10))


def test_the_slowest_identity_takes_one_place() -> None:
    sample = Sample(10)
    for place in range(1000):
        slow = {"first": place % 100 == 0, "seconds": [("a", 1.0 + place // 100)]}  # 100 photos an identity
        sample.add(row(place, similarity=None, psnr=None, **slow))
    assert {800, 900} <= {r["place"] for r in sample.rows()}


def test_identities_listed_are_those_shown_the_worst_and_the_slowest() -> None:
    people = [Person(f"p{i}", "done", optimised=i / 100, seconds=float(100 - i)) for i in range(100)]
    people[50].status = "failed"
    found = listed(people, {"p70"}, 6)
    assert [one.name for one in found] == ["p99", "p98", "p70", "p50", "p1", "p0"]
    assert len(listed(people, set(), 500)) == 100
    assert {one.name for one in listed(people, {f"p{i}" for i in range(9)}, 5)} == {f"p{i}" for i in range(9)}


def test_an_identity_has_the_worst_figures_of_its_photos() -> None:
    one = Person("ann", "done")
    for status, psnr, left in (("protected", 40.0, 0.2), ("protected", 30.0, None), ("failed", None, 0.5)):
        scores = [{"optimised": True, "after": left}, {"optimised": False, "after": 0.7}]
        seen = {"ssimulacra2": psnr and 2 * psnr, "ssimulacra2_face": 71.5 if psnr else None}
        one.add({"status": status, "psnr": psnr, "similarity": scores} | seen)
    assert (one.photos, one.unprotected, one.optimised, one.held_out, one.psnr) == (3, 1, 0.5, 0.7, 30.0)
    assert one.ssimulacra2 == 60.0
    one.add({"status": "protected", "psnr": 30.0, "similarity": [], "ssimulacra2": 90.0, "ssimulacra2_face": -5.0})
    assert one.ssimulacra2 == -5.0


def test_reservoir_is_fair() -> None:
    counts = np.zeros(50)
    for seed in range(400):
        sample = Sample(10, seed)
        for place in range(50):
            sample.add(row(place))
        counts[[r["place"] for r in sample._drawn]] += 1
    assert counts.sum() == 4000
    assert abs(counts - 80).max() < 5 * np.sqrt(400 * 0.2 * 0.8)  # binomial, five standard deviations


def test_spread_and_bins_in_closed_form() -> None:
    series = Series()
    for value in [*range(101), None]:
        series.add(value)
    spread = series.spread
    assert spread is not None
    assert (spread.count, spread.median, spread.low, spread.high) == (101, 50, 5, 95)
    assert sum(series.bins(0, 100)) == 101
    assert Series().spread is None
