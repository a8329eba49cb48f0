import copy
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from dladiff.core.randomness import stream
from dladiff.diffusion import attention
from dladiff.diffusion.attention import MapReader, Maps, map_distance
from dladiff.diffusion.surrogate import EMBEDDED, Noise, Prompt, Surrogate
from dladiff.errors import ModelError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    torch.set_num_threads(1)
    return Surrogate("embedded", CPU)


@pytest.fixture(scope="module")
def double(surrogate: Surrogate) -> Surrogate:
    out = copy.copy(surrogate)
    out.trainable = out.frozen_copy = out.low_rank = None
    out.unet, out.vae = copy.deepcopy(surrogate.unet).double(), copy.deepcopy(surrogate.vae).double()
    return out


def doubled(noise: Noise) -> Noise:
    return Noise(noise.t, noise.latent.double(), noise.posterior.double())


def test_noising_and_v_target_are_the_schedulers(surrogate: Surrogate) -> None:
    scheduler = DDPMScheduler.from_pretrained(EMBEDDED, subfolder="scheduler")
    noise = surrogate.draw([stream(0, "a"), stream(0, "b")], 128)
    z = torch.randn(2, 8, 16, 16, generator=stream(1))
    prompt = surrogate.prompt("a photo of sks person")
    assert prompt.instance == 4
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
    prompt = Prompt(double.prompt("a photo of sks person").embedding.double())
    x = torch.rand(1, 3, 64, 64, generator=stream(4), dtype=torch.float64)
    other = torch.rand(1, 3, 64, 64, generator=stream(5), dtype=torch.float64)

    read = MapReader(8)

    def latents(image: torch.Tensor) -> torch.Tensor:
        return double.latents(double.encode(image), noise)

    def maps(image: torch.Tensor) -> Maps:
        return read(double.unet, lambda: double.predict(double.unet, latents(image), noise, prompt))

    with torch.no_grad():
        want = maps(other)

    def loss(image: torch.Tensor) -> torch.Tensor:
        if kind == "denoising":
            predicted = double.predict(double.unet, latents(image), noise, prompt)
            return (predicted - noise.latent).square().mean()
        have = maps(image)
        pairs = zip(want.cross + want.own, have.cross + have.own, strict=True)
        return torch.stack([(p.attention_map() - q.attention_map()).square().mean() for p, q in pairs]).sum()

    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(point), point)
    direction = torch.randn(x.shape, generator=stream(6), dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        numeric = float((loss(x + h * direction) - loss(x - h * direction)) / (2 * h))
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-4)


def test_maps_equal_plain_softmax_and_output_is_unchanged(surrogate: Surrogate) -> None:
    noise = surrogate.draw([stream(0)], 128)
    z = torch.randn(1, 8, 16, 16, generator=stream(1))
    prompt = surrogate.prompt("a photo of sks person")
    attn = surrogate.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    caught: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = attn.register_forward_pre_hook(
        lambda _, args, kwargs: caught.append((args[0], kwargs["encoder_hidden_states"])), with_kwargs=True
    )
    with torch.no_grad():
        plain = surrogate.predict(surrogate.unet, z, noise, prompt)
        read: list[torch.Tensor] = []
        maps = MapReader(16)(surrogate.unet, lambda: read.append(surrogate.predict(surrogate.unet, z, noise, prompt)))
        handle.remove()
        hidden, context = caught[-1]
        width = attn.to_q.out_features // attn.heads
        rows = []
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            q, k = hidden[0] @ attn.to_q.weight[part].T, context[0] @ attn.to_k.weight[part].T
            rows.append(torch.softmax(q @ k.T / width**0.5, -1))
    assert torch.allclose(plain, read[0], atol=1e-4)
    assert torch.allclose(maps.cross[0].attention_map()[0], torch.stack(rows).mean(0), atol=1e-5)
    assert len(maps.cross) == len(maps.own) >= 1
    assert maps.own[0].attention_map().shape == (1, 256, 256)
    assert float(map_distance(maps, maps)) == 0


LAYOUTS: dict[str, Any] = {
    "sd15": {"layers_per_block": 2, "attention_head_dim": 2, "cross_attention_dim": 24},
    "sd21": {
        "layers_per_block": 2,
        "attention_head_dim": (1, 2, 4, 4),
        "cross_attention_dim": 32,
        "use_linear_projection": True,
    },
}


@pytest.mark.parametrize(
    ("layout", "side", "layers"), [("sd15", 16, 10), ("sd21", 16, 10), ("sd21", 8, 10), ("sd21", 4, 2)]
)
def test_stopping_at_the_last_map_changes_neither_maps_nor_gradient(layout: str, side: int, layers: int) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(block_out_channels=(8, 16, 32, 32), norm_num_groups=4, **LAYOUTS[layout])
    unet.requires_grad_(False)
    context = torch.randn(2, 7, unet.config.cross_attention_dim)
    z, other = torch.randn(2, 2, 4, 32, 32)
    z.requires_grad_(True)
    ends: list[int] = []
    unet.conv_out.register_forward_hook(lambda *_: ends.append(1))
    read = MapReader(side)

    def distance() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            want = read(unet, lambda: unet(other, 10, context))
        have = read(unet, lambda: unet(z, 10, context))
        assert len(want.cross) + len(want.own) == layers
        loss = map_distance(want, have)
        return loss, torch.autograd.grad(loss, z)[0]

    read.layers = -1  # never reached: both passes run to the end
    want = read(unet, lambda: unet(other, 10, context))
    read.layers = -1
    whole = map_distance(want, read(unet, lambda: unet(z, 10, context)))
    (expected,) = torch.autograd.grad(whole, z)
    assert len(ends) == 2
    found, gradient = distance()
    assert len(ends) == 2
    assert torch.equal(found, whole) and torch.equal(gradient, expected)


def test_loss_in_blocks_is_the_loss_of_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    read = MapReader(8)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(block_out_channels=(8, 16, 32, 32), norm_num_groups=4, **LAYOUTS["sd21"])
    context, other = torch.randn(1, 7, 32), torch.randn(1, 4, 32, 32)
    z = torch.randn(1, 4, 32, 32, requires_grad=True)
    want = read(unet, lambda: unet(other, 10, context))

    def loss() -> tuple[torch.Tensor, torch.Tensor]:
        value = map_distance(want, read(unet, lambda: unet(z, 10, context)))
        return value, torch.autograd.grad(value, z)[0]

    whole, expected = loss()
    monkeypatch.setattr(attention, "BLOCK", 64 * 5)  # thirteen blocks of self-attention, two of cross-attention
    found, gradient = loss()
    assert torch.allclose(found, whole, rtol=1e-5) and torch.allclose(gradient, expected, rtol=1e-3, atol=1e-12)


def test_copies_are_reset_in_place(surrogate: Surrogate) -> None:
    unet = surrogate.fresh_network()
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    frozen = surrogate.freeze(unet)
    unet.requires_grad_(True)
    unet.conv_in.weight.sum().backward()
    again = surrogate.fresh_network()
    assert again is unet and torch.equal(frozen.conv_in.weight, surrogate.unet.conv_in.weight + 1)
    assert surrogate.freeze(again) is frozen and torch.equal(frozen.conv_in.weight, surrogate.unet.conv_in.weight)
    assert torch.equal(again.conv_in.weight, surrogate.unet.conv_in.weight)
    assert all(p.grad is None and not p.requires_grad for p in again.parameters())


def test_encoding_in_parts_and_sampling_are_the_vaes(surrogate: Surrogate) -> None:
    x = torch.rand(3, 3, 64, 64, generator=stream(1))
    noise = surrogate.draw([stream(2)] * 3, 64)
    with torch.no_grad():
        plain = surrogate.vae.encode(x * 2 - 1).latent_dist
    found = surrogate.encode_fixed(x, 2)
    assert torch.allclose(found.mean, plain.mean, atol=1e-4) and torch.allclose(found.std, plain.std, atol=1e-4)
    z = (plain.mean + plain.std * noise.posterior) * surrogate.vae.config.scaling_factor
    assert torch.allclose(surrogate.latents(found, noise), z, atol=1e-4)


def test_the_frozen_bf16_copy_computes_what_autocast_computes(surrogate: Surrogate) -> None:
    bf16 = copy.copy(surrogate)
    bf16.trainable = bf16.frozen_copy = bf16.low_rank = None
    bf16.use_bf16 = True
    noise = surrogate.draw([stream(0)], 64)
    z, prompt = torch.randn(1, 8, 8, 8, generator=stream(1)), surrogate.prompt("a photo of sks person")
    unet = bf16.fresh_network()
    frozen = bf16.freeze(unet)
    assert {p.dtype for p in frozen.parameters()} == {torch.float32, torch.bfloat16}
    with torch.no_grad(), bf16.autocast():
        wanted, found = (bf16.predict(network, z, noise, prompt) for network in (unet, frozen))
    assert torch.equal(wanted, found)


def test_missing_model_says_what_to_do(tmp_path) -> None:
    with pytest.raises(ModelError, match="model_index"):
        Surrogate(tmp_path, CPU)
