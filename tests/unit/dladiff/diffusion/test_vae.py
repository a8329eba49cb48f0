"""VAEs of base models: each layout encodes as its own pipeline does; impossible and hostile ones are refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2Pipeline,
    FluxImg2ImgPipeline,
    QwenImageImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from dladiff.diffusion import vae as module
from dladiff.diffusion.catalogue import EMBEDDED
from dladiff.diffusion.surrogate import Surrogate
from dladiff.diffusion.vae import BaseVae, load_vaes
from dladiff.diffusion.vae_architecture import read_vae
from dladiff.diffusion.vae_catalogue import VAES, known_vae_faults
from dladiff.errors import ModelError
from tests.support.model_layouts import change_json
from tests.support.vae_layouts import LAYOUTS, write_tiny, write_vae

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def picture(count: int = 2, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def of_pipeline(name: str, network: Any, images: Tensor) -> Tensor:
    """The latents of the posterior's mean as diffusers' own pipeline gives them; images in [-1, 1]."""
    network.encode = with_mode(network.encode)  # pipelines sample: the mode makes that the mean
    pipe: Any = SimpleNamespace(vae=network)
    if name == "vae:flux1":
        out: Tensor = FluxImg2ImgPipeline._encode_vae_image(pipe, images, None)
    elif name == "vae:flux2":
        pipe._patchify_latents = Flux2Pipeline._patchify_latents
        out = torch.cat([Flux2Pipeline._encode_vae_image(pipe, one[None], None) for one in images])
    elif name == "vae:qwen":
        out = QwenImageImg2ImgPipeline._encode_vae_image(pipe, images[:, :, None], None)[:, :, 0]
    elif name == "vae:sd3":
        out = noiseless(StableDiffusion3Img2ImgPipeline, pipe, images)
    else:
        pipe._execution_device = CPU
        pipe.vae.config.force_upcast = False
        out = noiseless(StableDiffusionXLImg2ImgPipeline, pipe, images)
    return out


def with_mode(encode: Callable[..., Any]) -> Callable[..., Any]:
    def encoded(images: Tensor, *_: Any, **__: Any) -> Any:
        found = encode(images).latent_dist
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda _=None: found.mean, mode=lambda: found.mode()))

    return encoded


def noiseless(kind: Any, pipe: Any, images: Tensor) -> Tensor:
    """Latents of an image-to-image pipeline, from a scheduler that adds no noise."""
    pipe.scheduler = SimpleNamespace(scale_noise=lambda latents, *_: latents, add_noise=lambda latents, *_: latents)
    out: Tensor = kind.prepare_latents(pipe, images, torch.tensor([1]), len(images), 1, torch.float32, CPU, None)
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_encodes_as_its_own_pipeline(name: str, tmp_path: Path) -> None:
    vae = BaseVae(str(write_vae(tmp_path / "one", name)), CPU)
    network = LAYOUTS[name][0].from_pretrained(tmp_path / "one")
    with torch.no_grad():
        found, wanted = vae.encode(picture()), of_pipeline(name, network, picture() * 2 - 1)
    assert torch.allclose(found.mean, wanted, atol=1e-5) and found.mean.std() > 0
    assert found.mean.shape[-1] * vae.factor == 64 and known_vae_faults(tmp_path / "one", name) == []
    assert found.log_variance is not None and found.log_variance.shape == found.mean.shape


@pytest.mark.parametrize("name", ["vae:flux1", "vae:flux2", "vae:qwen"])
def test_the_log_variance_is_that_of_normalised_samples(name: str, tmp_path: Path) -> None:
    """Drawn from the pipeline's posterior and normalised: their variance is the one that `encode` states."""
    vae = BaseVae(str(write_vae(tmp_path / "one", name)), CPU)
    network = LAYOUTS[name][0].from_pretrained(tmp_path / "one")
    encode, drawn = network.encode, torch.Generator().manual_seed(1)

    def once(images: Tensor, *_: Any) -> Any:
        found = encode(images).latent_dist
        sample = found.mean + found.std * torch.randn(found.mean.shape, generator=drawn)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=sample, mode=lambda: sample))

    samples = []
    with torch.no_grad():
        for _ in range(200):
            network.encode = lambda images, *_: SimpleNamespace(latent_dist=once(images).latent_dist)
            samples.append(drawn_latents(name, network, picture(1) * 2 - 1))
        stated = vae.encode(picture(1)).log_variance
    assert stated is not None
    ratio = torch.stack(samples).var(0) / stated.exp()
    assert 0.98 < float(ratio.mean()) < 1.02


def drawn_latents(name: str, network: Any, images: Tensor) -> Tensor:
    found, kept = network.encode(images if name != "vae:qwen" else images[:, :, None]).latent_dist.mean, network.encode
    network.encode = lambda *_: SimpleNamespace(latent_dist=SimpleNamespace(mean=found, mode=lambda: found))
    pipe: Any = SimpleNamespace(vae=network, _patchify_latents=Flux2Pipeline._patchify_latents)
    if name == "vae:flux2":
        out: Tensor = Flux2Pipeline._encode_vae_image(pipe, images, None)
    elif name == "vae:flux1":
        out = (found - network.config.shift_factor) * network.config.scaling_factor
    else:
        mean, std = (torch.tensor(network.config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
        out = ((found - mean) / std)[:, :, 0]
    network.encode = kept
    return out


def test_the_embedded_vae_is_the_surrogates_own() -> None:
    vae, surrogate = BaseVae("embedded", CPU), Surrogate("embedded", CPU)
    with torch.no_grad():
        ours, theirs = vae.encode(picture()), surrogate.encode(picture())
    assert torch.equal(ours.mean, theirs.mean * surrogate.vae.config.scaling_factor)
    assert torch.allclose((ours.log_variance / 2).exp(), theirs.std)  # type: ignore[operator]
    assert (vae.name, vae.factor) == ("tiny", surrogate.factor)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_gradient_reaches_the_picture(name: str, tmp_path: Path) -> None:
    vae = BaseVae(str(write_vae(tmp_path / "one", name)), CPU)
    for recompute in (False, True):
        vae.recompute(recompute)
        point = picture(1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(vae.encode(point).mean.square().sum(), point)
        assert gradient.abs().mean() > 0 and gradient.isfinite().all()


@pytest.mark.parametrize("name", ["taesd", "taesdxl", "taesd3", "taef1"])
def test_small_autoencoders_of_real_latent_spaces(name: str, tmp_path: Path) -> None:
    """They take [0, 1] themselves: the class of diffusers takes [-1, 1] and changes the range."""
    home = Path(os.environ.get("DLADIFF_ASSETS", "../shared/assets")) / "taesd"
    if not home.is_dir():
        pytest.skip(f"no small autoencoders in {home}")
    encoder = home / f"{name}_encoder.safetensors"
    folder = write_tiny(tmp_path / name, encoder, home / f"{name}_decoder.safetensors")
    vae = BaseVae(str(folder), CPU)
    plain = torch.nn.Sequential(*(_layer(load_file(encoder), i) for i in range(15)))
    with torch.no_grad():
        assert torch.allclose(vae.encode(picture()).mean, plain(picture()), atol=1e-4)
        vae.recompute(True)  # would change the range in diffusers 0.42
        assert torch.allclose(vae.encode(picture()).mean, plain(picture()), atol=1e-4)
    assert vae.encode(picture()).log_variance is None and (vae.factor, vae.name) == (8, name)


class _Block(torch.nn.Module):
    def __init__(self, weights: dict[str, Tensor], number: int) -> None:
        super().__init__()
        convs = []
        for part in (0, 2, 4):
            conv = torch.nn.Conv2d(64, 64, 3, padding=1)
            conv.load_state_dict({k: weights[f"{number}.conv.{part}.{k}"] for k in ("weight", "bias")})
            convs += [conv, torch.nn.ReLU()]
        self.conv = torch.nn.Sequential(*convs[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def _layer(weights: dict[str, Tensor], number: int) -> torch.nn.Module:
    if f"{number}.weight" not in weights:
        return _Block(weights, number)
    kernel, bias = weights[f"{number}.weight"], weights.get(f"{number}.bias")
    conv = torch.nn.Conv2d(
        kernel.shape[1], kernel.shape[0], 3, padding=1, stride=2 if bias is None else 1, bias=bias is not None
    )
    conv.load_state_dict({"weight": kernel} | ({} if bias is None else {"bias": bias}))
    return conv


def test_weights_have_a_sum_of_one_and_one_vae_has_one_digest_wherever_it_is(tmp_path: Path) -> None:
    own = write_vae(tmp_path / "own", "vae:sd")
    shutil.copytree(own, tmp_path / "model" / "vae")
    alone, inside = load_vaes([str(own), str(tmp_path / "model")], [3.0, 1.0], CPU)
    assert (alone.weight, inside.weight) == (0.75, 0.25) and alone.vae.sha256 == inside.vae.sha256
    assert (alone.vae.name, inside.vae.name) == ("own", "model")


def refused(folder: Path, why: str) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        BaseVae(str(folder), CPU)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("vae:sd", {"_class_name": "AutoencoderKLWan"}, "is a AutoencoderKLWan; supported are"),
        ("vae:sd", {"_class_name": ["x"] * 9}, "supported are"),
        ("vae:sd", {"block_out_channels": [8, 16, 32, 10**5]}, "100000 channels in a layer"),
        ("vae:sd", {"block_out_channels": [8] * 100}, "100 levels"),
        ("vae:sd", {"layers_per_block": 10**6}, "layers_per_block"),
        ("vae:sd", {"latent_channels": "4"}, "wrong type"),
        ("vae:sd", {"in_channels": 4}, "takes 4 channels"),
        ("vae:sd", {"scaling_factor": float("nan")}, "scaling_factor"),
        ("vae:sd", {"scaling_factor": 0}, "scaling_factor"),
        ("vae:flux1", {"shift_factor": [1]}, "shift_factor"),
        ("vae:qwen", {"base_dim": 90_000}, "channels in a layer"),
        ("vae:qwen", {"num_res_blocks": 10**6}, "num_res_blocks"),
        ("vae:qwen", {"latents_std": [0.0] * 16}, "latents_std of 0.0"),
        ("vae:qwen", {"latents_mean": [0.0] * 15}, "15 numbers in latents_mean for 16 channels"),
        ("vae:flux2", {"patch_size": [64, 64]}, "patches"),
    ],
)
def test_impossible_settings(name: str, values: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = write_vae(tmp_path / "one", name)
    change_json(folder / "config.json", **values)
    refused(folder, why)


@pytest.mark.parametrize("name", LAYOUTS)
def test_incomplete_weights(name: str, tmp_path: Path) -> None:
    folder = write_vae(tmp_path / "one", name)
    weights = load_file(folder / WEIGHTS)
    for lost in ("encoder.conv_in.weight", "encoder.mid_block.resnets.0.conv1.weight", "encoder.conv_out.bias"):
        save_file({k: v for k, v in weights.items() if k != lost}, folder / WEIGHTS)
        refused(folder, r"lacks \d+ tensors of its configuration|incomplete")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    refused(folder, "incomplete copy")
    (folder / WEIGHTS).unlink()
    refused(folder, "is missing")


def test_a_configuration_that_asks_for_more_than_its_weights_hold_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_vae(tmp_path / "one", "vae:sd")
    change_json(folder / "config.json", block_out_channels=[8192] * 4)
    monkeypatch.setattr(module.diffusers.AutoencoderKL, "from_pretrained", None)  # would take 100 GB
    refused(folder, r"lacks \d+ tensors of its configuration, encoder.conv_in.weight first")


def test_flux2_without_its_statistics_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    folder = write_vae(tmp_path / "one", "vae:flux2")
    weights = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in weights.items() if k != "bn.running_var"}, folder / WEIGHTS)
    refused(folder, "bn.running_var")
    save_file(weights | {"bn.running_var": -weights["bn.running_var"]}, folder / WEIGHTS)
    refused(folder, "not finite")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    folder = write_vae(tmp_path / "one", "vae:sd")
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    refused(folder, "safetensors is missing")


@pytest.mark.parametrize("content", [b"[" * 200_000, b"[]", b"7", b"\xff\xfe", b""])
def test_damaged_configurations(content: bytes, tmp_path: Path) -> None:
    folder = write_vae(tmp_path / "one", "vae:sd")
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json (cannot be read as JSON|is no configuration)")


def test_the_catalogue_has_the_facts_of_the_layouts(tmp_path: Path) -> None:
    assert set(VAES) == set(LAYOUTS)
    for name in LAYOUTS:
        assert read_vae(write_vae(tmp_path / name[4:], name)) == VAES[name].architecture
    wrong = known_vae_faults(tmp_path / "sd", "vae:flux1")
    assert len(wrong) == 2 and "number of latent channels is 4, that of vae:flux1 is 16" in wrong[0]
    assert read_vae(EMBEDDED / "vae").channels == 8
    assert json.loads((tmp_path / "sd" / "config.json").read_text())["scaling_factor"] == 0.18215
