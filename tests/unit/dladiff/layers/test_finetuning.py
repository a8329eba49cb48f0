"""Layer 1 against a direct implementation of the same algorithm, without optimisations (tests/bench/straight.py)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dladiff.core.randomness import stream
from dladiff.diffusion.surrogate import Surrogate
from dladiff.layers import finetuning as finetuning_layer
from dladiff.settings.schema import FinetuningConfig
from tests.bench.straight import Straight

pytestmark = pytest.mark.networks

CPU = torch.device("cpu")
SIZE = 64


def both(config: FinetuningConfig, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """The perturbation of two photos, with a clean set of three, by the direct implementation and by ours."""
    torch.set_num_threads(1)
    straight, ours = Straight("embedded", CPU, config), Surrogate("embedded", CPU)
    for part in (straight.models.vae, straight.models.encoders[0].network, straight.static, straight.dynamic):
        part.to(kind)
    for part in (ours.vae, ours.encoders[0].network, ours.unet):
        part.to(kind)
    clean, x = torch.rand(5, 3, SIZE, SIZE, generator=stream(1), dtype=kind).split([3, 2])
    a = straight.protect(clean, x, stream(2), [stream(3), stream(4)])
    static = finetuning_layer.static_surrogate(ours, clean, config, stream(2))
    b = finetuning_layer.perturb(ours, static, x, config, [stream(3), stream(4)])
    return a, b


def schedule(**changes: Any) -> FinetuningConfig:
    settings: dict[str, Any] = {
        "iter_ft": 4,
        "iter_opt": 3,
        "iter_1": 2,
        "iter_2": 1,
        "iter_3": 2,
        "attention_resolution": 8,
    }
    return FinetuningConfig(**(settings | {"lr_static": 5e-4, "lr_dynamic": 2e-4, "batch": 2} | changes))


@pytest.mark.parametrize("resolution", [8, 4])
def test_sign_steps_agree_in_double_precision(resolution: int) -> None:
    a, b = both(schedule(attention_resolution=resolution), torch.float64)
    assert a.abs().max() > 5 / 255
    assert (a - b).abs().max() < 1e-9


def test_sign_steps_agree_in_single_precision_except_where_the_gradient_is_rounding_error() -> None:
    a, b = both(schedule(), torch.float32)
    assert ((a - b).abs() > 1e-6).double().mean() < 0.01


@pytest.mark.parametrize("size", [1, 2])
def test_the_number_of_squares_at_once_changes_nothing_in_double_precision(size: int) -> None:
    torch.set_num_threads(1)
    ours, found = Surrogate("embedded", CPU), []
    for part in (ours.vae, ours.encoders[0].network, ours.unet):
        part.to(torch.float64)
    clean, x = torch.rand(5, 3, SIZE, SIZE, generator=stream(1), dtype=torch.float64).split([2, 3])
    for batch_photos in (3, size):
        config = schedule(batch_photos=batch_photos)
        static = finetuning_layer.static_surrogate(ours, clean, config, stream(2))
        streams = [stream(3, str(i)) for i in range(3)]
        found.append(finetuning_layer.perturb(ours, static, x, config, streams))
    assert (found[0] - found[1]).abs().max() < 1e-9


@pytest.mark.parametrize("resolution", [16, 8])
def test_recomputation_changes_nothing_and_keeps_less_memory(resolution: int) -> None:
    """Layers with maps of 8 x 8 follow recomputed layers; those with 16 x 16 do not."""
    torch.set_num_threads(1)
    ours, found, kept = Surrogate("embedded", CPU), [], []
    for part in (ours.vae, ours.encoders[0].network, ours.unet):
        part.to(torch.float64)
    x = torch.rand(2, 3, 128, 128, generator=stream(1), dtype=torch.float64)
    for recompute in (False, True):
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        config = schedule(iter_opt=1, iter_1=1, iter_2=1, recompute=recompute, attention_resolution=resolution)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            static = finetuning_layer.static_surrogate(ours, x, config, stream(2))
            found.append(finetuning_layer.perturb(ours, static, x, config, [stream(3), stream(4)]))
        kept.append(sum(sizes.values()))
    assert (found[0] - found[1]).abs().max() < 1e-9
    assert kept[1] < 0.7 * kept[0]
