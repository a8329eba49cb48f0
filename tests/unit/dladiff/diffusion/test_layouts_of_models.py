"""The layouts of the supported models with few channels, through the loader and layer 1."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from dladiff.core.randomness import stream
from dladiff.diffusion.attention import MapReader
from dladiff.diffusion.catalogue import MODELS
from dladiff.diffusion.surrogate import Surrogate
from dladiff.errors import ModelError
from dladiff.layers.finetuning import perturb, static_surrogate
from dladiff.settings.schema import method_config
from tests.support.model_layouts import UNETS, change_json, write_layout

CPU = torch.device("cpu")
TEXT = "a photo of sks person"
READ = {"sd15": 5, "sd21": 5, "sd21-768": 5, "sdxl": 60}
"""Number of layers of each kind whose maps have 1/32 of the photo's side: in SDXL 2 x 10 + 10 + 3 x 10 of 70."""


@pytest.fixture(scope="module", params=list(UNETS))
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    torch.set_num_threads(1)
    return request.param, write_layout(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def surrogate(layout: tuple[str, Path]) -> Surrogate:
    return Surrogate(layout[1], CPU)


@pytest.mark.networks
def test_prompt_is_the_pipelines(layout: tuple[str, Path], surrogate: Surrogate) -> None:
    name, folder = layout
    kind: Any = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        found = pipe.encode_prompt(TEXT, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False)
    prompt = surrogate.prompt(TEXT)
    assert torch.equal(prompt.embedding, found[0]) and prompt.instance == 4
    assert prompt.embedding.shape[-1] == surrogate.unet.config.cross_attention_dim
    if name != "sdxl":
        assert prompt.pooled is None
        return
    assert prompt.pooled is not None and torch.equal(prompt.pooled, found[2])
    sizes = pipe._get_add_time_ids(
        (256, 256), (0, 0), (256, 256), torch.float32, pipe.text_encoder_2.config.projection_dim
    )
    seen: dict[str, torch.Tensor] = {}

    def unet(latents: torch.Tensor, t: object, text: object, added_cond_kwargs: dict[str, torch.Tensor]) -> object:
        seen.update(added_cond_kwargs)
        return type("Out", (), {"sample": latents})

    noise = surrogate.draw([stream(1), stream(2)], 256)
    surrogate.predict(unet, torch.zeros(2, 4, 32, 32), noise, prompt)
    assert torch.equal(seen["time_ids"], sizes.expand(2, -1)) and seen["text_embeds"].shape == (2, 40)


@pytest.mark.parametrize("part", [pytest.param(4, marks=pytest.mark.networks), pytest.param(1, marks=pytest.mark.slow)])
def test_maps_of_the_profile(layout: tuple[str, Path], surrogate: Surrogate, part: int) -> None:
    """At a quarter of the profile's resolution the same layers have maps of a quarter of the side."""
    name = layout[0]
    config, known = method_config(name, None, {}), MODELS[name]
    assert (config.model, config.resolution) == (name, known.resolution)
    assert config.finetuning.attention_resolution == known.resolution // 32
    assert known.resolution // 32 in surrogate.map_sides(known.resolution)
    noise, side = surrogate.draw([stream(0)], config.resolution // part), known.resolution // 32 // part
    unet, prompt = surrogate.unet, surrogate.prompt(TEXT)
    with torch.no_grad():
        maps = MapReader(side)(unet, lambda: surrogate.predict(unet, noise.posterior, noise, prompt))
    assert len(maps.cross) == len(maps.own) == READ[name]
    assert maps.own[0].attention_map().shape == (1, side**2, side**2)


def test_map_sides_equal_those_of_a_forward_pass(surrogate: Surrogate) -> None:
    seen: set[int] = set()
    noise = surrogate.draw([stream(0)], 64)
    for module in surrogate.unet.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            module.attn1.register_forward_pre_hook(lambda _, args: seen.add(int(args[0].shape[1] ** 0.5)))
    with torch.no_grad():
        surrogate.predict(surrogate.unet, noise.posterior, noise, surrogate.prompt(TEXT))
    assert surrogate.map_sides(64) == sorted(seen, reverse=True)


@pytest.mark.networks
def test_layer_1_runs_and_stays_within_its_bound(layout: tuple[str, Path], surrogate: Surrogate) -> None:
    config = method_config(layout[0], None, {}).finetuning.replaced(
        iter_ft=1, iter_opt=2, iter_1=1, iter_2=1, iter_3=1, attention_resolution=2, lr_static=1e-3,
    )  # fmt: skip
    x = torch.rand(1, 3, 64, 64, generator=stream(3))
    static = static_surrogate(surrogate, x, config, stream(4))
    delta = perturb(surrogate, static, x, config, [stream(5)])
    assert 0 < float(delta.abs().max()) <= config.eta + 1e-6
    assert float((x + delta).min()) >= 0 and float((x + delta).max()) <= 1
    noise = surrogate.draw([stream(7)], 64)
    latents = surrogate.latents(surrogate.encode(x), noise)
    prompt = surrogate.prompt(TEXT)
    with torch.no_grad():
        predicted = surrogate.predict(surrogate.unet, latents, noise, prompt)
        loss = float(surrogate.loss(surrogate.unet, latents, noise, prompt))
    scale = surrogate.alphas[noise.t].view(-1, 1, 1, 1)
    v = scale.sqrt() * noise.latent - (1 - scale).sqrt() * latents
    target = v if layout[0] == "sd21-768" else noise.latent
    assert loss == pytest.approx(float((predicted - target).square().mean()), rel=1e-5)


def test_latents_carry_the_factor_of_the_model(layout: tuple[str, Path], surrogate: Surrogate) -> None:
    noise = surrogate.draw([stream(1)], 64)
    posterior = surrogate.encode(torch.rand(1, 3, 64, 64, generator=stream(2)))
    plain = posterior.mean + posterior.std * noise.posterior
    factor = 0.13025 if layout[0] == "sdxl" else 0.18215
    assert torch.allclose(surrogate.latents(posterior, noise), plain * factor)


def test_names_of_tensors_as_published(tmp_path: Path) -> None:
    """Weights from 2022 use other names for the VAE's attention, and their text encoder has an obsolete buffer."""
    folder = write_layout(tmp_path / "sd15", "sd15")
    before = Surrogate(folder, CPU)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for new, name in old.items():
        weights = {
            key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): value for key, value in weights.items()
        }
    assert any(".query." in key for key in weights)
    save_file(weights, file)
    file = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    save_file(weights | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    after = Surrogate(folder, CPU)
    assert torch.equal(after.prompt(TEXT).embedding, before.prompt(TEXT).embedding)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(after.encode(x).mean, before.encode(x).mean)


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "sd15", "sd15")
    for path, key in (
        ("text_encoder/model", "final_layer_norm.weight"),
        ("unet/diffusion_pytorch_model", "conv_in.bias"),
    ):
        file = folder / f"{path}.safetensors"
        weights = load_file(file)
        save_file({name: value for name, value in weights.items() if not name.endswith(key)}, file)
        with pytest.raises(ModelError, match=f"{path.split('/')[0]} in .* lacks 1 tensors"):
            Surrogate(folder, CPU)
        save_file(weights, file)


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("sd15", "unet/config.json", {"in_channels": 9}, "unet takes 9 channels and gives 4 .an inpainting model."),
    ("sd15", "unet/config.json", {"_class_name": "UNet2DModel"}, "unet is a UNet2DModel"),
    ("sd15", "unet/config.json", {"class_embed_type": "projection"}, "conditioning"),
    ("sd15", "unet/config.json", {"cross_attention_dim": 32}, "give 24 channels, the unet takes 32"),
    ("sdxl", "unet/config.json", {"projection_class_embeddings_input_dim": 80}, "88 channels, the unet takes 80"),
    ("sdxl", "text_encoder_2/config.json", {"architectures": ["CLIPTextModel"]}, "not a CLIPTextModelWithProjection"),
    ("sd15", "text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "is T5EncoderModel"),
    ("sd15", "vae/config.json", {"_class_name": "AutoencoderTiny"}, "vae is a AutoencoderTiny"),
    ("sd15", "vae/config.json", {"shift_factor": 0.1}, "shift_factor"),
    ("sd15", "scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts sample"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_layout(tmp_path_factory.mktemp("whole") / name, name) for name in ("sd15", "sdxl")}


@pytest.mark.parametrize(("name", "path", "change", "message"), WRONG)
def test_other_architectures_are_refused_with_the_name_of_the_part(
    whole: dict[str, Path], name: str, path: str, change: dict[str, Any], message: str
) -> None:
    file = whole[name] / path
    before = file.read_text()
    try:
        change_json(file, **change)
        with pytest.raises(ModelError, match=f"{message}.*supported are SD 1.x"):
            Surrogate(whole[name], CPU)
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("kind", "part", "network"),
    [
        ("PixArtSigmaPipeline", "transformer", "PixArtTransformer2DModel"),
        ("SanaPipeline", "transformer", "SanaTransformer2DModel"),
    ],
)
def test_other_transformers_are_refused(tmp_path: Path, kind: str, part: str, network: str) -> None:
    index = {"_class_name": kind, part: ["diffusers", network], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"a {kind} has no unet but a {network}; supported are SD 1.x"):
        Surrogate(tmp_path, CPU)


def test_an_incomplete_download_names_the_file(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "sd15", "sd15")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    for cut, message in ((len(data) // 2, "an incomplete copy"), (4, "header is cut off"), (0, "header is cut off")):
        file.write_bytes(data[:cut])
        with pytest.raises(ModelError, match=f"unet/diffusion_pytorch_model.safetensors .*{message}"):
            Surrogate(folder, CPU)
    file.unlink()
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.safetensors is missing"):
        Surrogate(folder, CPU)
