"""Captured steps give the results of eager steps: `python -m pytest -m gpu`, on a machine with a CUDA device."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dladiff.core.randomness import stream
from dladiff.diffusion.graphs import Graphs
from dladiff.diffusion.surrogate import Surrogate
from dladiff.evaluation.attackers.base import load_base, settings_for
from dladiff.evaluation.attacks import ATTACKS
from dladiff.layers import finetuning as finetuning_layer
from dladiff.settings.schema import FinetuningConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
CUDA = torch.device("cuda")


def test_a_captured_step_gives_the_results_of_the_eager_step() -> None:
    state = torch.zeros(3, device=CUDA)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        state.add_(x)
        return state * 2, x.sum()

    captured = Graphs(CUDA).captured(step)
    before = [captured(torch.full((3,), float(i), device=CUDA)) for i in range(6)]
    for i, (double, total) in enumerate(before):
        assert double.tolist() == [i * (i + 1)] * 3 and float(total) == 3 * i
    with pytest.raises(ValueError, match="captured with a tensor of"):
        captured(torch.zeros(2, device=CUDA))


@pytest.mark.parametrize("size", [4, 2])
def test_capture_changes_no_perturbation(size: int) -> None:
    settings = {"iter_ft": 12, "iter_opt": 4, "iter_1": 3, "iter_2": 3, "iter_3": 3, "batch_photos": size}
    config = FinetuningConfig(**settings, lr_static=5e-4, lr_dynamic=2e-4)  # type: ignore[arg-type]
    surrogate, found = Surrogate("embedded", CUDA), []
    x = torch.rand(4, 3, 128, 128, generator=stream(1)).to(CUDA)
    for captured in (False, True, True):
        surrogate.use_cuda_graphs = captured
        static = finetuning_layer.static_surrogate(surrogate, x, config, stream(2))
        losses: finetuning_layer.Losses = {}
        streams = [stream(3, str(i)) for i in range(4)]
        found.append((finetuning_layer.perturb(surrogate, static, x, config, streams, losses), losses))
    (plain, eager), (first, replayed), (second, _) = found
    assert plain.abs().max() > 5 / 255
    for other in (first, second):  # a gradient that is rounding error may change its sign
        assert ((plain - other).abs() > 1e-3).double().mean() < 0.1
    for stage, values in eager.items():
        a, b = torch.stack(values), torch.stack(replayed[stage])
        assert (a - b).abs().max() < 0.05 * a.abs().max(), stage


@pytest.mark.parametrize("attack", ["dreambooth", "dreambooth_text", "lora", "textual_inversion"])
def test_an_attack_on_a_gpu_makes_pictures(attack: str) -> None:
    base = load_base("embedded", "cuda")
    settings = settings_for(attack, base).replaced(steps=20, sampling_steps=3)
    photos = [np.full((base.resolution, base.resolution, 3), 90 + 20 * i, np.uint8) for i in range(4)]
    made = ATTACKS[attack].load()(base, photos, settings, ["a photo of sks person"], 2, 0)
    assert [picture.shape for picture in made["a photo of sks person"]] == [photos[0].shape] * 2
