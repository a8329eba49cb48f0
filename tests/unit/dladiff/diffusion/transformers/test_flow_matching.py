import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dladiff.core.randomness import stream
from dladiff.diffusion.transformers.flow_matching import Times, flow_loss, noised, shifted


def test_points_of_a_straight_line_and_their_velocity() -> None:
    z, e = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t = torch.tensor([1e-3, 0.25, 1.0])
    point = noised(z, e, t)
    for row, time in enumerate(t.tolist()):
        assert torch.allclose(point[row], z[row] + time * (e[row] - z[row]), atol=1e-6)
    step = 1e-2  # the derivative along the line is what the network predicts
    slope = (noised(z, e, t + step) - noised(z, e, t)) / step
    assert float(flow_loss(slope, z, e)) < 1e-8
    assert float(flow_loss(slope + 2.0, z, e)) == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_are_those_of_diffusers_schedule(shift: float) -> None:
    schedule = set(FlowMatchEulerDiscreteScheduler(1000, shift=shift).sigmas[:-1].tolist())
    generator = stream(0)
    for logit_normal in (False, True):
        times = [Times(1000, shift, logit_normal).draw(generator) for _ in range(200)]
        assert all(min(abs(t - s) for s in schedule) < 1e-6 for t in times)
    assert max(schedule) == pytest.approx(1.0) and shifted(1.0, shift) == 1.0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_distribution_of_times(shift: float) -> None:
    """The logit of a shifted time is the logit before it plus log s."""
    generator = stream(1)
    times = torch.tensor([Times(1000, shift, True).draw(generator) for _ in range(4000)])
    logits = torch.logit(times.clamp(1e-4, 1 - 1e-4).double())
    assert float(logits.mean()) == pytest.approx(math.log(shift), abs=0.06)
    assert float(logits.std()) == pytest.approx(1.0, abs=0.05)
    times = torch.tensor([Times(1000).draw(generator) for _ in range(4000)])
    assert float(times.mean()) == pytest.approx(0.5, abs=0.02) and 0 < float(times.min()) and float(times.max()) <= 1
    assert float(times.std()) == pytest.approx(12**-0.5, abs=0.01)
