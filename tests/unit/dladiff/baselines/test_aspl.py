"""ASPL beside the same algorithm written straight down (tests/bench/peers.py)."""

import pytest
import torch

from dladiff.baselines.aspl import aspl
from dladiff.baselines.task import Task
from dladiff.core.randomness import stream
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import schedule_for
from dladiff.settings.schema import FinetuningConfig
from tests.bench.peers import StraightAspl

pytestmark = pytest.mark.networks

CPU = torch.device("cpu")


def test_it_is_the_straight_script_in_double_precision() -> None:
    torch.set_num_threads(1)
    schedule = schedule_for("aspl", "embedded").replaced(epochs=2, steps=2, training=2)
    straight, ours = StraightAspl("embedded", CPU, FinetuningConfig()), Surrogate("embedded", CPU)
    for part in (straight.models.vae, straight.models.encoders[0].network, straight.dynamic):
        part.double()
    for part in (ours.vae, ours.encoders[0].network, ours.unet):
        part.double()
    clean, x = torch.rand(5, 3, 64, 64, generator=stream(1), dtype=torch.float64).split([3, 2])
    a = straight.attack(clean, x, schedule, stream(2), [stream(3), stream(4)])
    b = aspl(Task(ours, clean, x, schedule, [stream(3), stream(4)], stream(2)))
    assert a.abs().max() > schedule.step_size
    assert (a - b).abs().max() < 1e-9
