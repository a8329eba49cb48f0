"""Whether an identity's photos show one person, on embeddings whose cosines are known."""

import subprocess
import sys

import numpy as np
import pytest

from dladiff.core.grouping import MIN_FACES, MIN_MEDIAN, different_people, median_cosine


def faces(cosine: float, count: int) -> list[np.ndarray]:
    """Unit vectors with the same cosine between any two: a shared direction and one of their own."""
    own = np.eye(count + 1)[1:]
    shared = np.eye(count + 1)[0]
    return [(np.sqrt(cosine) * shared + np.sqrt(1 - cosine) * one).astype(np.float32) for one in own]


@pytest.mark.parametrize("count", [4, 5, 12])
@pytest.mark.parametrize(("cosine", "strangers"), [(0.0, True), (MIN_MEDIAN - 0.01, True), (MIN_MEDIAN + 0.01, False)])
def test_the_median_over_all_pairs_decides(cosine: float, strangers: bool, count: int) -> None:
    assert median_cosine(faces(cosine, count)) == pytest.approx(cosine, abs=1e-6)
    reason = different_people(faces(cosine, count))
    assert bool(reason) == strangers
    if strangers:
        assert reason.startswith("photos of this identity show different people (median similarity 0.")
        assert reason.endswith(f"of {count} faces); use --layout flat")


def test_one_wrong_photo_of_a_person_is_no_other_person() -> None:
    own = [*faces(0.5, 5)[:4], np.eye(6, dtype=np.float32)[5]]
    assert different_people(own) == ""


def test_too_few_faces_say_nothing() -> None:
    for count in range(MIN_FACES):
        assert median_cosine(faces(0.0, count)) is None and different_people(faces(0.0, count)) == ""


def test_torch_is_not_imported() -> None:
    code = "import sys; import dladiff.core.grouping, pipeline.run.look; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
