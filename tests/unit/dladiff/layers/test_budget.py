"""The visibility budget: what it penalises, and how its weights follow what is missed."""

import numpy as np
import pytest
import torch

from dladiff.core import visibility
from dladiff.core.pixels import to_float, to_uint8
from dladiff.core.transforms import blur
from dladiff.layers.budget import COLOUR_WEIGHTS, SCORE_WEIGHTS, Budget
from tests.golden.make_tiny import photo


def noisy(x: torch.Tensor, levels: float) -> torch.Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    return (x + levels / 255 * noise).clamp(0, 1)


def test_a_picture_within_the_budget_has_no_penalty() -> None:
    x = to_float(photo())
    budget = Budget(x, [], target=75, colour=1.0)
    assert budget.gradient(noisy(x, 1), 0).abs().max() == 0
    assert budget.weights[0] < SCORE_WEIGHTS[1] and budget.weights[1] < COLOUR_WEIGHTS[1]


def test_descending_the_penalty_makes_a_picture_less_visible() -> None:
    x = to_float(photo())
    budget, changed = Budget(x, [(60, 60, 190, 190)], target=90, colour=1.0), noisy(x, 12)
    scores = []
    for step in range(24):
        gradient = budget.gradient(changed, step)
        scores.append(budget.score)
        changed = changed - 0.5 / 255 * gradient.sign()
    assert scores[0] < 50 and scores[-1] > scores[0] + 15
    assert budget.weights[0] > SCORE_WEIGHTS[1]


def test_weights_stay_within_their_limits() -> None:
    x = to_float(photo())[..., 80:176, 80:176]
    budget, changed = Budget(x, [], target=99, colour=0.01), noisy(x, 20)
    for step in range(200):
        budget.gradient(changed if step % 2 else x, 2 * step)
    for weight, limits in zip(budget.weights, (SCORE_WEIGHTS, COLOUR_WEIGHTS), strict=True):
        assert limits[0] <= weight <= limits[2]


def test_one_gradient_serves_two_steps() -> None:
    x = to_float(photo())
    budget = Budget(x, [], target=99, colour=1.0)
    first = budget.gradient(noisy(x, 8), 0)
    assert budget.gradient(noisy(x, 20), 1) is first and budget.gradient(noisy(x, 20), 2) is not first


def test_a_small_face_and_a_large_photo_fit() -> None:
    for side in (24, 1500):
        x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        gradient = Budget(x, [(2, 2, 20, 20)], target=95, colour=1.0).gradient(noisy(x, 20), 0)
        assert gradient.shape == x.shape and bool(gradient.isfinite().all()) and gradient.abs().max() > 0


def test_a_small_whole_photo_is_scored_as_the_stored_file_is() -> None:
    """Fine noise counts most in the fewer scales of the whole photo, coarse noise in those of the enlarged face."""
    pixels = np.ascontiguousarray(photo()[60:180, 60:180])
    x = to_float(pixels)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for change, of_face in ((6 / 255 * noise, False), (60 / 255 * blur(noise, 4.0), True)):
        changed = to_float(to_uint8(x + change))
        stored = [visibility.ssimulacra2(pixels, to_uint8(changed), face=face) for face in (False, True)]
        alone, twice = (Budget(x, [(0, 0, 120, 120)], target=75, colour=1.5, whole=whole) for whole in (False, True))
        for budget in (alone, twice):
            budget.gradient(changed, 0)
        assert (stored[1] < stored[0]) == of_face and abs(stored[0] - stored[1]) > 5
        assert twice.score == pytest.approx(min(stored), abs=0.5)
        assert of_face or alone.score > min(stored) + 5


@pytest.mark.parametrize("size", [(120, 120), (150, 130), (96, 200)])
def test_a_small_face_is_enlarged_as_the_measure_enlarges_it(size: tuple[int, int]) -> None:
    pixels = np.ascontiguousarray(photo()[20 : 20 + size[0], 20 : 20 + size[1]])
    budget = Budget(to_float(pixels), [(0, 0, size[1], size[0])], target=75, colour=1.5)
    found, expected = to_uint8(budget._small(to_float(pixels))), visibility.shown(pixels, face=True)
    assert found.shape == expected.shape and min(found.shape[:2]) == visibility.FACE_SIDE
    off = np.abs(found.astype(int) - expected)  # Pillow rounds between its two passes
    assert off.max() <= 4 and off.mean() < 0.3


def test_a_face_within_a_part_is_enlarged_to_the_size_of_the_measure() -> None:
    """The part may be larger than the square that is scored."""
    x = to_float(np.ascontiguousarray(photo()[30:230, 30:230]))
    budget = Budget(x, [(40, 60, 140, 160)], target=75, colour=1.5)
    assert budget._small(x).shape[-2:] == (512, 512)
    assert budget._scaled((40, 60, 140, 160), 512, 512) == (102, 153, 358, 409)
