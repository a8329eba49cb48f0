"""Layer 1 on transformers: losses, maps, recomputation, all stages; what is refused."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dladiff.core.randomness import stream
from dladiff.diffusion.attention import map_distance
from dladiff.diffusion.base_model import Noise, recompute
from dladiff.diffusion.surrogate import Surrogate
from dladiff.diffusion.transformers.surrogate import FlowSurrogate
from dladiff.errors import ModelError
from dladiff.layers.finetuning import perturb, static_surrogate
from dladiff.settings.schema import FinetuningConfig, method_config

pytestmark = pytest.mark.networks
CPU = torch.device("cpu")
TEXT = "a photo of sks person"


def settings(name: str, **changes: object) -> FinetuningConfig:
    few = {"iter_ft": 2, "iter_opt": 2, "iter_1": 1, "iter_2": 1, "iter_3": 1, "attention_resolution": 4, "rank": 2}
    return method_config(name, None, {"finetuning": few | {"lr_static": 1e-2, "lr_dynamic": 1e-2} | changes}).finetuning


def test_loss_against_the_closed_form(flow: FlowSurrogate) -> None:
    x = torch.rand(2, 3, 64, 64, generator=stream(1))
    noise = flow.draw([stream(1), stream(2)], 64)
    z, prompt = flow.latents(flow.encode(x), noise), flow.prompt(TEXT)
    with torch.no_grad():
        velocity = flow.predict(flow.network, z, noise, prompt)
        loss = flow.loss(flow.network, z, noise, prompt)
        alone = flow.predict(flow.network, z[1:], noise.pick(slice(1, 2)), prompt)
    assert torch.allclose(loss, functional.mse_loss(velocity, noise.latent - z))
    assert torch.allclose(velocity[1:], alone, atol=1e-5)  # a photo's prediction does not depend on the others
    assert ((noise.t > 0) & (noise.t <= 1)).all() and noise.t.unique().numel() == 2
    again = flow.draw([stream(2)], 64)
    assert torch.equal(again.latent[0], noise.latent[1]) and torch.equal(again.t[0], noise.t[1])


@pytest.mark.parametrize("on", [False, True])
def test_gradients_of_both_losses_are_finite_differences(flow: FlowSurrogate, on: bool) -> None:
    """In double precision, but for diffusers' rotary embeddings and means of squares; also with recomputation."""
    flow.network.double()
    try:
        noise = flow.draw([stream(4)], 64)
        noise = Noise(noise.t.double(), noise.latent.double(), noise.posterior.double())
        shape = noise.latent.shape
        z, other = (torch.randn(shape, generator=stream(i), dtype=torch.float64) for i in (1, 2))
        prompt = flow.prompt(TEXT)
        prompt = type(prompt)(
            prompt.embedding.double(), prompt.instance, None if prompt.pooled is None else prompt.pooled.double()
        )
        read = flow.map_reader(4)
        with torch.no_grad():
            clean = read(flow.network, lambda: flow.predict(flow.network, other, noise, prompt))

        def attention(point: torch.Tensor) -> torch.Tensor:
            return map_distance(clean, read(flow.network, lambda: flow.predict(flow.network, point, noise, prompt)))

        recompute(flow.network, on)
        for loss in (attention, lambda point: flow.loss(flow.network, point, noise, prompt).double()):
            point = z.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(point), point)
            direction, step = torch.randn(shape, generator=stream(9), dtype=torch.float64), 1e-3
            with torch.no_grad():
                slope = (loss(z + step * direction) - loss(z - step * direction)) / (2 * step)
            assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=2e-2)
            assert float(gradient.abs().max()) > 0
    finally:
        recompute(flow.network, False)
        flow.network.float()


def test_all_stages_run_and_stay_within_the_bound(layout: tuple[str, Path], flow: FlowSurrogate) -> None:
    config = settings(layout[0])
    assert config.surrogate == "lora" and config.recompute
    x = torch.rand(2, 3, 64, 64, generator=stream(3))
    losses: dict[str, list[torch.Tensor]] = {}
    flow.fresh_network(config.rank)
    before = {name: p.clone() for name, p in flow.network.named_parameters() if "lora_" not in name}
    static = static_surrogate(flow, x, config, stream(4), losses)
    delta = perturb(flow, static, x, config, [stream(5), stream(6)], losses)
    assert 0 < float(delta.abs().max()) <= config.eta + 1e-6
    assert {stage: len(values) for stage, values in losses.items()} == {
        "static surrogate": 2, "dynamic surrogate": 1, "attention steps": 4, "denoising steps": 4,
    }  # fmt: skip
    # two epochs, two photos, one at a time
    assert all(torch.stack(values).isfinite().all() for values in losses.values())
    dynamic, frozen = flow.low_rank
    for matrices in (dynamic, frozen):
        assert any(not torch.equal(p, first) for p, first in zip(matrices.matrices, matrices.first, strict=True))
    after = dict(flow.network.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())  # the base never changes
    again = perturb(flow, static_surrogate(flow, x, config, stream(4)), x, config, [stream(5), stream(6)])
    assert torch.equal(again, delta)
    split = config.replaced(batch_photos=2, recompute=False)
    one = perturb(flow, static_surrogate(flow, x, split, stream(4)), x, split, [stream(5), stream(6)])
    assert float((one - delta).abs().mean()) < 0.02 * float(delta.abs().mean())  # rounding alone


def test_training_lowers_the_loss_of_what_is_learnt(layout: tuple[str, Path], flow: FlowSurrogate) -> None:
    config = settings(layout[0], iter_ft=25, rank=4)
    x = torch.rand(1, 3, 64, 64, generator=stream(3))
    static = static_surrogate(flow, x, config, stream(4))
    noise = flow.draw([stream(50 + i) for i in range(6)], 64)
    z = flow.latents(flow.encode(x.expand(6, -1, -1, -1)), noise)
    with torch.no_grad():
        prompt = flow.prompt(TEXT)
        learnt, plain = (float(flow.loss(n, z, noise, prompt)) for n in (static, flow.fresh_network(4)))
    assert learnt < 0.95 * plain


def test_whole_weights_and_the_other_kind_of_network_are_refused(layout: tuple[str, Path], flow: FlowSurrogate) -> None:
    with pytest.raises(ModelError, match="low-rank matrices only"):
        flow.fresh_network()
    with pytest.raises(ModelError, match="is a transformer, and a U-Net is needed here"):
        Surrogate(layout[1], CPU)
