"""Thresholds of verification: against sorting by hand, a normal distribution, and the embedded encoders' files."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dladiff.diffusion.catalogue import EMBEDDED
from dladiff.errors import ConfigError
from dladiff.evaluation.paper_layout import all_tables
from dladiff.evaluation.summaries import Group
from dladiff.evaluation.verification import (
    FAR,
    REFERENCES,
    calibrated,
    compared,
    genuine,
    read_calibrations,
    shipped_calibrations,
    threshold_at,
)
from tests.unit.dladiff.evaluation.test_tables import PROMPT, by_title, column, evaluation, everything, record


def units(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    vectors = rng.normal(size=(count, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_threshold_is_the_smallest_cosine_that_few_enough_impostors_reach() -> None:
    cosines = np.array([0.9, 0.1, 0.5, 0.7, 0.3, 0.2, 0.4, 0.6, 0.0, 0.8])
    assert threshold_at(cosines, 0.2) == 0.8
    assert threshold_at(cosines, 0.1) == 0.9
    assert threshold_at(cosines, 0.29) == 0.8
    tied = np.array([0.9, 0.8, 0.8, 0.8, *[0.1] * 6])
    assert threshold_at(tied, 0.2) == 0.9  # .8 would be reached by four of ten
    with pytest.raises(ValueError, match="10 comparisons are too few"):
        threshold_at(cosines, 0.05)


@given(st.lists(st.sampled_from([-0.5, 0.0, 0.1, 0.2, 0.5, 0.9]), min_size=1, max_size=40), st.sampled_from([0.1, 0.5]))
def test_a_threshold_keeps_the_rate_and_no_lower_one_does(values: list[float], far: float) -> None:
    cosines = np.array(values)
    keeps = [t for t in sorted(set(values)) if (cosines >= t).mean() <= far]
    if keeps:
        assert threshold_at(cosines, far) == keeps[0]
    else:
        with pytest.raises(ValueError, match="too few"):
            threshold_at(cosines, far)


def test_weights_count_a_comparison_as_often_as_its_people_are_drawn() -> None:
    cosines, weights = np.array([0.9, 0.5, 0.4, 0.1]), np.array([0.0, 1.0, 2.0, 7.0])
    repeated = np.repeat(cosines, weights.astype(int))
    for far in (0.1, 0.3, 0.5):
        assert threshold_at(cosines, far, weights) == threshold_at(repeated, far)


def test_each_photo_meets_every_other_persons_mean() -> None:
    people = {"b": np.array([[0.0, 1.0]]), "a": np.array([[1.0, 0.0], [0.6, 0.8]])}
    found = compared(people)
    mean = np.array([0.8, 0.4]) / np.hypot(0.8, 0.4)
    np.testing.assert_allclose(found.cosines, [[mean[0], 0], [mean @ [0.6, 0.8], 0.8], [mean[1], 1]])
    assert found.impostor.tolist() == [[False, True], [False, True], [True, False]]
    assert genuine(people) == {"a": [pytest.approx(0.6)] * 2}  # each photo with the other one, b has only one


def test_a_reference_has_at_most_the_evaluators_number_of_photos() -> None:
    many = np.concatenate([np.tile([1.0, 0.0], (REFERENCES, 1)), np.tile([0.0, 1.0], (50, 1))])
    found = compared({"a": many, "b": np.array([[1.0, 0.0]])})
    assert found.cosines[-1, 0] == pytest.approx(1)


def test_random_people_have_the_threshold_of_a_normal_distribution() -> None:
    """Cosines of independent unit vectors in 64 dimensions are normal with variance 1/64 to good approximation."""
    rng = np.random.default_rng(0)
    people = {f"{i:02d}": units(rng, 20, 64) for i in range(50)}
    found = calibrated(people, encoder="e", sha256="0", without_face=3, source="random")
    assert found.impostor_comparisons == 50 * 20 * 49
    assert found.false_accepts == 49
    assert found.threshold == pytest.approx(stats.norm.isf(FAR) / 8, abs=0.02)
    assert found.threshold_low <= found.threshold <= found.threshold_high
    assert 0.005 < found.threshold_high - found.threshold_low < 0.1
    assert found.true_accept_rate is not None and found.true_accept_rate < 0.01  # nobody looks like themselves
    assert (found.people, found.photos, found.without_face, found.genuine_comparisons) == (50, 1000, 3, 1000)


def test_people_who_look_like_themselves_are_verified() -> None:
    rng = np.random.default_rng(1)
    people = {}
    for i in range(40):
        centre = units(rng, 1, 64)
        mixed = centre + 0.3 * units(rng, 10, 64)
        people[str(i)] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    found = calibrated(people, encoder="e", sha256="0", without_face=0)
    assert (found.true_accept_rate, found.true_accept_low, found.true_accept_high) == (1, 1, 1)


def test_too_few_comparisons_are_refused() -> None:
    rng = np.random.default_rng(0)
    few = {name: units(rng, 3, 8) for name in "abcde"}
    with pytest.raises(ConfigError, match=r"60 comparisons of different people; a false accept rate of 0\.001 needs"):
        calibrated(few, encoder="e", sha256="0", without_face=0)
    with pytest.raises(ConfigError, match="0 comparisons"):
        calibrated({"a": units(rng, 3, 8), "b": np.empty((0, 8))}, encoder="e", sha256="0", without_face=0)
    assert calibrated(few, encoder="e", sha256="0", without_face=0, far=0.1).false_accepts == 6


def test_embedded_encoders_have_a_threshold_of_these_files() -> None:
    files = {
        file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in EMBEDDED.parent.glob("encoders/*.onnx")
    }
    found = {one.encoder: one for one in shipped_calibrations()}
    assert {name: one.sha256 for name, one in found.items()} == files
    for one in found.values():
        assert one.false_accept_rate == FAR
        assert one.false_accepts / one.impostor_comparisons <= FAR
        assert one.impostor_comparisons > 10_000 and one.people == 40
        assert "LFW" in one.source


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "is no calibration"),
        ("{", "is no calibration"),
        ("[" * 100_000, "is no calibration"),
        ('{"encoders": 3}', "encoders: expected a list"),
        ('{"encoders": [{"encoder": "e"}]}', "threshold: is missing"),
        ('{"encoders": [], "threshold": 0.3}', "threshold: unknown setting"),
    ],
)
def test_damaged_files_are_refused(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_calibrations(text, "a.json")
    assert any(line.startswith("a.json: ") and fault in line for line in error.value.faults)


@pytest.mark.parametrize("threshold", ["NaN", "2.0", '"0.3"', "null"])
def test_a_threshold_that_is_no_cosine_is_refused(threshold: str) -> None:
    one = json.dumps({"encoders": [shipped_calibrations()[0].to_dict() | {"threshold": "HERE"}]})
    with pytest.raises(ConfigError, match="threshold"):
        read_calibrations(one.replace('"HERE"', threshold), "a.json")


ROWS = (
    record("ann", "clean", "dreambooth", [0.5, 0.4, None, 0.1], seed=0),
    record("ann", "clean", "dreambooth", [0.3, 0.2, 0.1, None], seed=1),
    record("bob", "clean", "dreambooth", [None, None, -0.2, -0.3]),
)


def test_a_picture_is_verified_at_the_threshold_and_never_without_a_face() -> None:
    found = Group(ROWS, thresholds={"e": 0.4})
    assert found.values("verified", "e", PROMPT) == {"ann": [1, 1, 0, 0, 0, 0, 0, 0], "bob": [0, 0, 0, 0]}
    assert found.values("verified_best", "e", PROMPT) == {"ann": [1, 0], "bob": [0]}
    below = Group(ROWS, thresholds={"e": -1.0})
    assert below.values("verified", "e", PROMPT)["bob"] == [0, 0, 1, 1]


def test_without_a_threshold_there_is_no_value_and_no_column() -> None:
    assert Group(ROWS).values("verified", "e", PROMPT) == {"ann": [], "bob": []}
    plain, known = (evaluation(everything(), thresholds=t) for t in ({}, {"e": 0.15}))
    assert not [head for table in all_tables(plain) for head in table.columns if "verified" in head]
    one = by_title(all_tables(known), "Table 1")
    assert column(one, "verified e*")["dladiff"] == "0.500 (0.500 to 0.500)"
    assert column(one, "verified best e*")["dladiff"] == "1.000 (1.000 to 1.000), n 2"
    less = by_title(all_tables(known), "dladiff less each method: dreambooth")
    assert column(less, "verified e*")["clean"].startswith("0.000")


def test_photos_are_verified_against_other_photos_of_the_person() -> None:
    row = record("ann", "clean", "encoder_only", [0.9, 0.9, 0.9, 0.9])
    own = [{"e": 0.5}, {"e": 0.3}, {"e": None}, {}]
    row["protected"] = [photo | {"reference": value} for photo, value in zip(row["protected"], own, strict=True)]
    found = Group((row,), thresholds={"e": 0.4})
    assert found.values("photo_verified", "e") == {"ann": [1, 0, 0]}  # the last one has nothing to compare with
    assert found.values("photo_reference", "e") == {"ann": [0.5, 0.3, 0]}
    earlier = record("ann", "clean", "encoder_only", [0.9])  # measured before this comparison existed
    assert Group((earlier,), thresholds={"e": 0.4}).values("photo_verified", "e") == {"ann": []}
