import copy

import pytest
import torch
from diffusers import DDPMScheduler

from dladiff.attention import Maps, map_distance, reading
from dladiff.errors import ModelError
from dladiff.randomness import stream
from dladiff.surrogate import EMBEDDED, Noise, Surrogate, Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    torch.set_num_threads(1)
    return Surrogate("embedded", CPU)


@pytest.fixture(scope="module")
def double(surrogate: Surrogate) -> Surrogate:
    out = copy.copy(surrogate)
    out.unet, out.vae = copy.deepcopy(surrogate.unet).double(), copy.deepcopy(surrogate.vae).double()
    return out


def doubled(noise: Noise) -> Noise:
    return Noise(noise.t, noise.latent.double(), noise.posterior.double())


def test_noising_and_v_target_are_the_schedulers(surrogate: Surrogate) -> None:
    scheduler = DDPMScheduler.from_pretrained(EMBEDDED, subfolder="scheduler")
    noise = surrogate.draw([stream(0, "a"), stream(0, "b")], 128)
    z = torch.randn(2, 8, 16, 16, generator=stream(1))
    prompt, place = surrogate.prompt("a photo of sks person")
    assert place == 4
    seen: list[torch.Tensor] = []

    def fake(latents: torch.Tensor, *_: object) -> object:
        seen.append(latents)
        return type("Out", (), {"sample": torch.zeros_like(latents)})

    assert float(surrogate.loss(fake, z, noise, prompt)) == pytest.approx(float(noise.latent.square().mean()), rel=1e-5)
    assert torch.allclose(seen[0], scheduler.add_noise(z, noise.latent, noise.t), atol=1e-5)
    v = copy.copy(surrogate)
    v.prediction = "v_prediction"
    velocity = scheduler.get_velocity(z, noise.latent, noise.t)
    assert float(v.loss(fake, z, noise, prompt)) == pytest.approx(float(velocity.square().mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["denoising", "attention"])
def test_gradient_through_vae_and_unet_against_finite_differences(double: Surrogate, kind: str) -> None:
    noise = doubled(double.draw([stream(3)], 64))
    prompt = double.prompt("a photo of sks person")[0].double()
    x = torch.rand(1, 3, 64, 64, generator=stream(4), dtype=torch.float64)
    other = torch.rand(1, 3, 64, 64, generator=stream(5), dtype=torch.float64)

    def maps(image: torch.Tensor) -> Maps:
        with reading(double.unet, 8) as found:
            double.predict(double.unet, double.latents(image, noise), noise, prompt)
        return found

    with torch.no_grad():
        want = maps(other)

    def loss(image: torch.Tensor) -> torch.Tensor:
        if kind == "denoising":
            predicted = double.predict(double.unet, double.latents(image, noise), noise, prompt)
            return (predicted - noise.latent).square().mean()
        have = maps(image)
        return sum((p - q).square().mean() for p, q in zip(want.cross + want.own, have.cross + have.own, strict=True))

    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(point), point)
    way = torch.randn(x.shape, generator=stream(6), dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        numeric = float((loss(x + h * way) - loss(x - h * way)) / (2 * h))
    assert float((gradient * way).sum()) == pytest.approx(numeric, rel=1e-4)


def test_maps_equal_plain_softmax_and_output_is_unchanged(surrogate: Surrogate) -> None:
    noise = surrogate.draw([stream(0)], 128)
    z = torch.randn(1, 8, 16, 16, generator=stream(1))
    prompt, _ = surrogate.prompt("a photo of sks person")
    attn = surrogate.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    caught: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = attn.register_forward_pre_hook(
        lambda _, args, kwargs: caught.append((args[0], kwargs["encoder_hidden_states"])), with_kwargs=True
    )
    with torch.no_grad():
        plain = surrogate.predict(surrogate.unet, z, noise, prompt)
        with reading(surrogate.unet, 16) as maps:
            read = surrogate.predict(surrogate.unet, z, noise, prompt)
        handle.remove()
        hidden, context = caught[-1]
        width = attn.to_q.out_features // attn.heads
        rows = []
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            q, k = hidden[0] @ attn.to_q.weight[part].T, context[0] @ attn.to_k.weight[part].T
            rows.append(torch.softmax(q @ k.T / width**0.5, -1))
    assert torch.allclose(plain, read, atol=1e-4)
    assert torch.allclose(maps.cross[0][0], torch.stack(rows).mean(0), atol=1e-5)
    assert len(maps.cross) == len(maps.own) >= 1
    assert maps.own[0].shape == (1, 256, 256)
    assert not surrogate.unet.attn_processors == {} and float(map_distance(maps, maps)) == 0


def test_trainer_moves_fp32_weights_and_leaves_the_pretrained_ones(surrogate: Surrogate) -> None:
    before = surrogate.unet.conv_in.weight.clone()
    unet = surrogate.fresh_unet()
    prompt, _ = surrogate.prompt("a photo of sks person")
    noise = surrogate.draw([stream(0)], 128)
    latents = torch.randn(1, 8, 16, 16, generator=stream(1))
    trainer = Trainer(unet, 1e-4, 1e-2)
    losses = [trainer.step(surrogate, latents, noise, prompt) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert unet.conv_in.weight.dtype == torch.float32
    assert not any(p.requires_grad for p in unet.parameters())
    assert torch.equal(surrogate.unet.conv_in.weight, before)


def test_missing_model_says_what_to_do(tmp_path) -> None:
    with pytest.raises(ModelError, match="model_index"):
        Surrogate(tmp_path, CPU)
