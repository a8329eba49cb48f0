"""Which files of tests a tier leaves out before it imports them."""

import pytest

from tests.conftest import may_hold

DEFAULT = "not networks and not ray and not slow and not gpu"
ALL_RAY = "import pytest\n\npytestmark = [pytest.mark.ray, pytest.mark.timeout(9)]\n"
SOME_NETWORKS = "@pytest.mark.networks\ndef test_a(): ...\n"
RAY_AND_SLOW = ALL_RAY + "@pytest.mark.slow\ndef test_a(): ...\n"


@pytest.mark.parametrize(
    ("text", "markers", "held"),
    [
        ("", DEFAULT, True),
        ("", "networks", False),
        (ALL_RAY, DEFAULT, False),
        (ALL_RAY, "ray", True),
        (ALL_RAY, "networks or ray", True),
        (ALL_RAY, "", True),
        (ALL_RAY, "a_marker_of_a_file_s_own", True),
        (SOME_NETWORKS, DEFAULT, True),
        (SOME_NETWORKS, "networks", True),
        (SOME_NETWORKS, "slow", False),
        (RAY_AND_SLOW, "ray and slow", True),
        (RAY_AND_SLOW, "slow and not ray", False),
        ("x = [pytest.param(1, marks=pytest.mark.slow)]", "slow", True),
    ],
)
def test_a_file_is_left_out_if_no_test_of_it_can_be_asked_for(text: str, markers: str, held: bool) -> None:
    assert may_hold(text, markers) is held
