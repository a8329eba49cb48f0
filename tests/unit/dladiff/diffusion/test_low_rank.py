"""Low-rank surrogates: two sets of matrices on one UNet, beside surrogates of whole weights."""

import pytest
import torch
from torch import Tensor

from dladiff.core.randomness import stream
from dladiff.diffusion.low_rank import LAYERS, LowRank
from dladiff.diffusion.surrogate import Batch, Surrogate
from dladiff.diffusion.trainer import Trainer, in_parts
from dladiff.layers.finetuning import perturb, static_surrogate
from dladiff.settings.schema import FinetuningConfig, method_config

CONFIG = FinetuningConfig(
    iter_ft=3, iter_opt=2, iter_1=1, iter_2=1, iter_3=1, surrogate="lora", rank=4, lr_static=5e-3, lr_dynamic=5e-3
)


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return Surrogate("embedded", torch.device("cpu"))


def predicted(surrogate: Surrogate, unet: object) -> Tensor:
    noise, prompt = surrogate.draw([stream(1)], 128), surrogate.prompt("a photo of sks person")
    with torch.no_grad():
        return surrogate.predict(unet, torch.zeros_like(noise.latent) + 0.3, noise, prompt)


def photos() -> Tensor:
    return torch.rand(2, 3, 128, 128, generator=stream(0))


def test_fresh_matrices_are_the_pretrained_unet(surrogate: Surrogate) -> None:
    fresh = surrogate.fresh_network(4)
    assert isinstance(fresh, LowRank) and fresh is surrogate.fresh_network(4)
    assert torch.equal(predicted(surrogate, fresh), predicted(surrogate, surrogate.unet))
    layers = [m for name, m in surrogate.unet.named_modules() if name.endswith(tuple(LAYERS))]
    assert sum(p.numel() for p in fresh.parameters()) == sum(4 * (m.in_features + m.out_features) for m in layers)
    assert not any(p.requires_grad for p in fresh.parameters())


def test_training_changes_one_set_and_no_weight(surrogate: Surrogate) -> None:
    static = static_surrogate(surrogate, photos(), CONFIG, stream(2))
    learnt = predicted(surrogate, static)
    assert not torch.equal(learnt, predicted(surrogate, surrogate.unet))
    dynamic = surrogate.fresh_network(4)
    assert torch.equal(predicted(surrogate, dynamic), predicted(surrogate, surrogate.unet))
    trainer, noise = Trainer(dynamic, 5e-3, 0.0), surrogate.draw([stream(3)] * 2, 128)
    batch = Batch(torch.ones_like(noise.latent), noise, surrogate.prompt("a photo of sks person"))
    before = [p.detach().clone() for p in dynamic.unet.parameters()]
    trainer.step(surrogate, in_parts(batch, 1))
    changed = sum(not torch.equal(a, b) for a, b in zip(before, dynamic.unet.parameters(), strict=True))
    assert 0 < changed <= len(list(dynamic.parameters()))
    assert torch.equal(predicted(surrogate, static), learnt)
    held = sum(v.numel() for o in trainer.optimisers for s in o.state.values() for v in s.values() if v.dim())
    assert held == 2 * sum(p.numel() for p in dynamic.parameters())  # AdamW's moments, of the matrices alone


@pytest.mark.networks
def test_an_identity_does_not_depend_on_the_one_before(surrogate: Surrogate) -> None:
    def once() -> Tensor:
        static = static_surrogate(surrogate, photos(), CONFIG, stream(2))
        return perturb(surrogate, static, photos(), CONFIG, [stream(4), stream(5)])

    first = once()
    static_surrogate(surrogate, 1 - photos(), CONFIG, stream(9))
    again = once()
    assert torch.equal(first, again) and first.abs().max() > 0
    full = CONFIG.replaced(surrogate="full")
    static = static_surrogate(surrogate, photos(), full, stream(2))
    assert not torch.equal(perturb(surrogate, static, photos(), full, [stream(4), stream(5)]), first)


@pytest.mark.networks
def test_recomputing_gives_the_same_perturbation(surrogate: Surrogate) -> None:
    outs = []
    for on in (False, True):
        config = CONFIG.replaced(recompute=on)
        static = static_surrogate(surrogate, photos(), config, stream(2))
        outs.append(perturb(surrogate, static, photos(), config, [stream(4), stream(5)]))
    assert torch.equal(*outs)


def test_learning_rates_follow_the_surrogate_and_the_user_has_the_last_word() -> None:
    low = method_config("tiny", None, {"finetuning": {"surrogate": "lora"}}).finetuning
    assert (low.low_rank, low.lr_static) == (16, 5e-3)
    assert method_config("sd21", None, {"finetuning": {"surrogate": "lora"}}).finetuning.lr_static == 1e-4
    assert (
        method_config("tiny", None, {"finetuning": {"surrogate": "lora", "lr_static": 1e-3}}).finetuning.lr_static
        == 1e-3
    )
    assert method_config("tiny", None, {}).finetuning.low_rank == 0
