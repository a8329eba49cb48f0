"""Layer 1 against a direct implementation of the same algorithm, without optimisations (tests/bench/straight.py)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dladiff.core.pixels import Pixels, to_uint8
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


def test_sign_steps_agree_in_double_precision() -> None:
    a, b = both(schedule(), torch.float64)
    assert a.abs().max() > 5 / 255
    assert (a - b).abs().max() < 1e-9


@pytest.mark.parametrize("resolution", [8, 4])
def test_l2_steps_agree_in_single_precision(resolution: int) -> None:
    a, b = both(schedule(gradient="l2", attention_resolution=resolution), torch.float32)
    assert (a - b).abs().max() < 1e-4 and (a - b).norm() < 1e-3 * a.norm()


def test_sign_steps_agree_in_single_precision_except_where_the_gradient_is_rounding_error() -> None:
    a, b = both(schedule(), torch.float32)
    assert ((a - b).abs() > 1e-6).double().mean() < 0.01


@pytest.mark.parametrize(("size", "robust"), [(1, False), (2, True)])
def test_the_number_of_squares_at_once_changes_nothing_in_double_precision(size: int, robust: bool) -> None:
    torch.set_num_threads(1)
    ours, found = Surrogate("embedded", CPU), []
    for part in (ours.vae, ours.encoders[0].network, ours.unet):
        part.to(torch.float64)
    clean, x = torch.rand(5, 3, SIZE, SIZE, generator=stream(1), dtype=torch.float64).split([2, 3])
    for batch_photos in (3, size):
        config = schedule(batch_photos=batch_photos, robust=robust)
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


def test_transforms_inside_the_loss_change_the_perturbation_and_keep_its_bound() -> None:
    ours, found = Surrogate("embedded", CPU), []
    x = torch.rand(2, 3, SIZE, SIZE, generator=stream(1))
    for robust in (False, True):
        config = schedule(iter_ft=0, iter_opt=1, iter_1=2, iter_2=2, robust=robust)
        static = finetuning_layer.static_surrogate(ours, x, config, stream(2))
        found.append(finetuning_layer.perturb(ours, static, x, config, [stream(3), stream(4)]))
    assert 0.05 < ((found[0] - found[1]).abs() > 1e-3).double().mean()
    assert found[1].abs().max() <= 7 / 255 + 1e-6


def test_max_lpips_holds_and_smooth_regions_stay_smooth() -> None:
    ours = Surrogate("embedded", CPU)
    x = torch.cat([torch.rand(1, 3, SIZE, SIZE, generator=stream(1)), torch.full((1, 3, SIZE, SIZE), 0.5)])

    def found(**changes: object) -> Tensor:
        config = schedule(iter_ft=0, iter_opt=2, iter_1=1, iter_2=4, **changes)
        static = finetuning_layer.static_surrogate(ours, x, config, stream(2))
        streams = [stream(3), stream(4)]
        return finetuning_layer.perturb(ours, static, x, config, streams, lpips=rms)

    def rms(a: Pixels, b: Pixels) -> float:
        return float(np.sqrt(np.square(a.astype(float) - b).mean()))

    free, bound, smooth = found(), found(most_lpips=2.0), found(smooth=1.0)
    assert min(map(rms, to_uint8s(x), to_uint8s(x + free))) > 2.5
    assert 1.9 < max(map(rms, to_uint8s(x), to_uint8s(x + bound))) <= 2.0
    steepness = [(d[1, :, 1:] - d[1, :, :-1]).abs().mean() / d[1].abs().mean() for d in (free, smooth)]
    assert steepness[1] < 0.75 * steepness[0]


def to_uint8s(images: Tensor) -> list[Pixels]:
    return [to_uint8(one[None]) for one in images]
