"""MetaCloak: the order of trainings and attacks, its transforms, and squares that do not depend on each other."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from dladiff.baselines import metacloak as module
from dladiff.baselines.metacloak import metacloak, metacloak_loss, transformed
from dladiff.baselines.task import Task
from dladiff.core.transforms import blur
from dladiff.settings.schedules import BaselineConfig


class Fake:
    """A surrogate of one weight that counts its training steps."""

    calls: list[str]

    def __init__(self, *_: Any) -> None:
        self.texts: list[Any] = []
        self.name, self.unet = "model", nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.unet.weight)

    def clone(self) -> "Fake":
        other = Fake()
        other.unet.load_state_dict(self.unet.state_dict())
        other.name = "copy"
        return other

    def train(self, images: Tensor, schedule: BaselineConfig, generator: Generator) -> None:
        with torch.no_grad():
            self.unet.weight += schedule.training
        self.calls.append(f"{self.name} learns {float(images.mean()):.1f} up to {int(self.unet.weight)}")


def test_each_state_of_the_pool_is_attacked_one_step_ahead_while_it_learns_the_result(monkeypatch):
    Fake.calls = []

    def ascend(x: Tensor, delta: Tensor, loss: Any, schedule: BaselineConfig, generators: Any, steps: int) -> Tensor:
        Fake.calls.append(f"attack of {steps} steps")
        return delta + 0.1

    monkeypatch.setattr(module, "TrainableSurrogate", Fake)
    monkeypatch.setattr(module, "ascend", ascend)
    zero = torch.zeros(1, 3, 4, 4)
    schedule = BaselineConfig(eta=1, epochs=2, steps=6, training=2, pool=2, interval=5)
    task = Task(SimpleNamespace(), zero + 0.5, zero, schedule, [], Generator())  # type: ignore[arg-type]
    assert float(metacloak(task).mean()) == pytest.approx(0.8)  # two trails of two states, two turns each
    expected = ["model learns 0.5 up to 5", "model learns 0.5 up to 10"]
    level = 0.0
    for state in (5, 10, 5, 10):
        for seen in (state, state + 2):
            expected += [f"copy learns {level:.1f} up to {seen + 1}", "attack of 6 steps"]
            level += 0.1
            expected.append(f"model learns {level:.1f} up to {seen + 2}")
    assert Fake.calls == expected


def test_half_of_the_photos_are_mirrored_and_all_are_blurred_within_the_range():
    x = torch.rand(1, 3, 64, 64, generator=Generator().manual_seed(0))
    generator, mirrored = Generator().manual_seed(1), 0
    for _ in range(200):
        found = transformed(x, generator)
        plain = min(float((found - x).abs().mean()), float((found.flip(-1) - x).abs().mean()))
        assert plain <= float((blur(x, 2.0 * 64 / 512) - x).abs().mean()) + 1e-6
        mirrored += float((found.flip(-1) - x).abs().mean()) < float((found - x).abs().mean())
    assert 70 < mirrored < 130


def test_the_loss_of_squares_together_is_the_sum_of_each_alone():
    noise = torch.randn(2, 3, 16, 16, generator=Generator().manual_seed(0))

    class Linear:
        def denoising(self, point: Tensor, generators: list[Generator]) -> Tensor:
            draws = torch.stack([torch.randn(3, 16, 16, generator=own) for own in generators])
            return (point * draws).square().sum()

    def loss(rows: slice) -> float:
        streams = [Generator().manual_seed(i) for i in (0, 1)][rows]
        return float(metacloak_loss(Linear(), noise[rows], streams))  # type: ignore[arg-type]

    assert loss(slice(0, 2)) == pytest.approx(loss(slice(0, 1)) + loss(slice(1, 2)), rel=1e-5)
