"""joint: the encoders of a step, and the last scaling of a finished perturbation, on a canvas without networks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dladiff.layers import joint


def run(**members: Any) -> joint._Run:
    found = object.__new__(joint._Run)
    for name, value in members.items():
        setattr(found, name, value)
    return found


def fitted(score_at_one: float, *, last: bool, target: float = 75.0) -> float:
    """Return the factor that a perturbation gets whose score is `score_at_one` unscaled, and 100 without it."""
    before, added = torch.full((1, 3, 2, 2), 0.01), torch.full((1, 3, 2, 2), 0.02)

    def score(whole: Tensor) -> float:
        return 100 - (100 - score_at_one) * float((whole - before).mean()) / 0.02

    canvas = SimpleNamespace(score=score, target=target, last=last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint._Run, "pasted", lambda _, delta: delta)
        out = run(canvas=canvas, before=before).fitted(before + added)
    assert score(out) >= target or last
    return float((out - before).mean()) / 0.02


@pytest.mark.parametrize(
    ("score", "last", "factor"),
    [
        (76.0, True, 24.95 / 24),  # a point is left
        (76.0, False, 1.0),  # others need it
        (74.0, True, 24.95 / 26),
        (74.0, False, 24.95 / 26),
        (90.0, True, 1.1),  # enlarged by a tenth at most
        (50.0, True, 24.95 / 50),
    ],
)
def test_a_finished_perturbation_is_scaled_to_the_target(score: float, last: bool, factor: float) -> None:
    found = fitted(score, last=last)
    step = (joint.FITTING[0] - 1 if score > 75 else 1) / 2 ** joint.FITTING[1]
    assert factor - step - 1e-6 <= found <= factor + 1e-6


def picked(asked: int, count: int, steps: int) -> list[list[int]]:
    config = SimpleNamespace(encoders_per_step=asked)
    networks = SimpleNamespace(encoders=[None] * count)
    face = SimpleNamespace(history=[], generator=torch.Generator().manual_seed(0))
    out = []
    for _ in range(steps):
        out.append(run(config=config, networks=networks)._picked(face))  # type: ignore[arg-type]
        face.history.append([1.0] * count)
    return out


def test_a_step_evaluates_so_many_encoders_and_each_has_its_turn() -> None:
    assert picked(0, 3, 4) == [[0, 1, 2]] * 4
    assert picked(5, 2, 2) == [[0, 1]] * 2
    assert picked(1, 1, 2) == [[0]] * 2
    first, *others = picked(1, 3, 90)
    assert first == [0, 1, 2]  # so that each cosine is known
    counts = [sum(found == [i] for found in others) for i in range(3)]
    assert sum(counts) == 89 and min(counts) >= 15
    assert all(len({*found}) == 2 for found in picked(2, 3, 20)[1:])
