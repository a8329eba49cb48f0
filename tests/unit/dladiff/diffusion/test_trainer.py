"""Training steps of a surrogate: weights, gradient accumulation, offloaded moments, class images."""

import pytest
import torch

from dladiff.core.randomness import stream
from dladiff.diffusion import trainer
from dladiff.diffusion.surrogate import Batch, Surrogate
from dladiff.diffusion.trainer import MicroBatch, Trainer, in_parts
from dladiff.layers.finetuning import perturb, static_surrogate
from dladiff.settings.schema import FinetuningConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    torch.set_num_threads(1)
    return Surrogate("embedded", CPU)


@pytest.mark.networks
def test_trainer_changes_its_weights_and_not_the_pretrained_ones(surrogate: Surrogate) -> None:
    before = surrogate.unet.conv_in.weight.clone()
    unet = surrogate.fresh_network()
    prompt = surrogate.prompt("a photo of sks person")
    noise = surrogate.draw([stream(0)], 128)
    latents = torch.randn(1, 8, 16, 16, generator=stream(1))
    training = Trainer(unet, 1e-4, 1e-2)
    losses = [training.step(surrogate, [MicroBatch(Batch(latents, noise, prompt))]) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert unet.conv_in.weight.dtype == torch.float32
    assert not any(p.requires_grad for p in unet.parameters())
    assert torch.equal(surrogate.unet.conv_in.weight, before)


def test_offloaded_moments_change_no_step(surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "GROUP", 500_000)
    noise = surrogate.draw([stream(0)], 64)
    batch = Batch(torch.randn(1, 8, 8, 8, generator=stream(1)), noise, surrogate.prompt("a photo of sks person"))
    found = []
    for host in (None, CPU):
        training = Trainer(unet := surrogate.fresh_network(), 1e-4, 1e-2, host)
        for _ in range(3):
            training.step(surrogate, [MicroBatch(batch)])
        found.append([p.clone() for p in unet.parameters()])
    assert len(training.optimisers) > 3
    assert all(map(torch.equal, *found))


def test_a_training_step_in_parts_is_the_whole_step(surrogate: Surrogate) -> None:
    prompt = surrogate.prompt("a photo of sks person")
    noise = surrogate.draw([stream(i) for i in range(3)], 64)
    latents = torch.randn(3, 8, 8, 8, generator=stream(1))

    batch = Batch(latents, noise, prompt)
    found = []
    for size in (3, 2):
        unet = surrogate.fresh_network()
        loss = Trainer(unet, 1e-4, 1e-2).step(surrogate, in_parts(batch, size))
        found.append((loss, unet.conv_in.weight - surrogate.unet.conv_in.weight))
    (whole, moved), (halves, moved_too) = found
    assert torch.allclose(whole, halves, rtol=1e-5)
    assert moved.abs().max() > 0 and (moved - moved_too).norm() < 1e-3 * moved.norm()


@pytest.mark.networks
def test_the_prior_term_is_the_loss_on_class_images_and_without_them_nothing_is_drawn(surrogate: Surrogate) -> None:
    config = FinetuningConfig(
        iter_ft=0, iter_opt=2, iter_1=1, iter_2=1, iter_3=1, lr_dynamic=1e-3, attention_resolution=8
    )
    x = torch.rand(2, 3, 64, 64, generator=stream(0))

    def delta(weight: float) -> torch.Tensor:
        static = static_surrogate(surrogate, x, config, stream(1))
        return perturb(surrogate, static, x, config.replaced(prior_weight=weight), [stream(2), stream(3)])

    before = stream(5).get_state()
    assert surrogate.prior_batch([same := stream(5)]) is None
    assert torch.equal(same.get_state(), before)
    surrogate.set_prior(torch.rand(3, 3, 64, 64, generator=stream(4)), "a photo of a person", 2)
    try:
        batch = surrogate.prior_batch([stream(5), stream(6)])
        assert batch is not None and batch.latents.shape == batch.noise.latent.shape
        prompt = surrogate.prompt("a photo of sks person")
        own = Batch(batch.latents.flip(0), batch.noise, prompt)
        unet = surrogate.fresh_network()
        with torch.no_grad():
            apart = [surrogate.loss(unet, b.latents, b.noise, b.prompt) for b in (own, batch)]
        together = Trainer(unet, 1e-4, 1e-2).step(surrogate, [MicroBatch(own, batch)], 0.5)
        assert torch.allclose(together, apart[0] + 0.5 * apart[1], atol=1e-6)
        assert not torch.equal(delta(1.0), delta(0.0))
    finally:
        surrogate.prior = None
