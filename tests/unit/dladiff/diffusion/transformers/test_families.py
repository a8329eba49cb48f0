"""Each family beside diffusers' own pipeline and attention, on one model with few channels and random weights."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from dladiff.core.randomness import stream
from dladiff.diffusion.model_json import read_object
from dladiff.diffusion.text import Prompt
from dladiff.diffusion.transformers.packing import packed, unpacked
from dladiff.diffusion.transformers.surrogate import FlowSurrogate

pytestmark = pytest.mark.networks
TEXT = "a photo of sks person"
SIDE = 64
"""Side of the pictures, pixels: 4 x 4 image tokens."""
Call = tuple[dict[str, Any], Tensor]


@pytest.fixture(scope="module")
def pipe(layout: tuple[str, Path]) -> Any:
    index = read_object(layout[1] / "model_index.json")
    pipe = getattr(diffusers, index["_class_name"]).from_pretrained(layout[1], local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def calls(layout: tuple[str, Path], pipe: Any) -> list[Call]:
    """The transformer's inputs and outputs in three steps of the pipeline."""
    found: list[Call] = []

    def keep(_: object, __: object, named: dict[str, Any], out: Any) -> None:
        found.append((named, out[0]))

    handle = pipe.transformer.register_forward_hook(keep, with_kwargs=True)
    more = {} if layout[0] == "qwen-image" else {"guidance_scale": 3.5 if layout[0].startswith("flux1") else 1.0}
    with torch.no_grad():
        pipe(
            prompt=TEXT, height=SIDE, width=SIDE, num_inference_steps=3, generator=stream(3),
            output_type="latent", **more,
        )  # fmt: skip
    handle.remove()
    assert len(found) == 3
    return found


def as_latents(name: str, tokens: Tensor) -> Tensor:
    """Return what a pipeline gives its transformer as latents `b c h w`, by the pipelines' own functions."""
    if name == "sd35":
        return tokens
    if name == "flux2-klein":
        return tokens.transpose(1, 2).reshape(1, -1, 4, 4)
    unpack = diffusers.FluxPipeline._unpack_latents
    return unpack(tokens, SIDE, SIDE, 8)


def test_prompt_is_the_pipelines(layout: tuple[str, Path], flow: FlowSurrogate, calls: list[Call]) -> None:
    prompt, named = flow.prompt(TEXT), calls[0][0]
    assert torch.allclose(prompt.embedding, named["encoder_hidden_states"], atol=1e-5)
    if "pooled_projections" in named:
        assert prompt.pooled is not None and torch.allclose(prompt.pooled, named["pooled_projections"], atol=1e-6)
    else:
        assert prompt.pooled is None
    assert prompt.instance is not None and flow.prompt("a photo").instance is None


def test_velocity_is_the_pipelines(layout: tuple[str, Path], flow: FlowSurrogate, calls: list[Call]) -> None:
    name, prompt = layout[0], flow.prompt(TEXT)
    rows = Prompt(prompt.embedding, prompt.instance, prompt.pooled)
    times = []
    for named, out in calls:
        t = named["timestep"] / (1000 if name == "sd35" else 1)
        times.append(float(t))
        with torch.no_grad():
            flow.recorder.text = prompt.embedding.shape[1]
            ours = flow.family.velocity(flow.network, as_latents(name, named["hidden_states"]), t, rows)
        assert torch.allclose(ours, as_latents(name, out), atol=1e-4)
        assert float(ours.std()) > 0.1
    (first, out), (second, _) = calls[:2]  # and the pipeline's step is along it
    moved = first["hidden_states"] + (times[1] - times[0]) * out
    assert torch.allclose(moved, second["hidden_states"], atol=1e-5)


def test_packing_is_the_pipelines() -> None:
    latents = torch.randn(2, 16, 8, 12)
    own = diffusers.FluxPipeline._pack_latents(latents, 2, 16, 8, 12)
    assert torch.equal(packed(latents), own)
    assert torch.equal(unpacked(own, 8, 12), latents)


def test_latents_are_the_training_scripts(layout: tuple[str, Path], flow: FlowSurrogate, pipe: Any) -> None:
    """The posterior's sample or mean, with the shift, factor or statistics of the pipeline's VAE."""
    name, x = layout[0], torch.rand(1, 3, SIDE, SIDE, generator=stream(1))
    noise = flow.draw([stream(2)], SIDE)
    with torch.no_grad():
        found = flow.latents(flow.encode(x), noise)
        image = (x * 2 - 1)[:, :, None] if name == "qwen-image" else x * 2 - 1
        posterior, config = pipe.vae.encode(image).latent_dist, pipe.vae.config
    if name == "flux2-klein":
        mean, variance = pipe.vae.bn.running_mean.view(1, -1, 1, 1), pipe.vae.bn.running_var.view(1, -1, 1, 1)
        wanted = (pipe._patchify_latents(posterior.mode()) - mean) / (variance + config.batch_norm_eps).sqrt()
    elif name == "qwen-image":
        sample = (posterior.mean + posterior.std * noise.posterior[:, :, None])[:, :, 0]
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        wanted = (sample - mean) / std
    else:
        sample = posterior.mean + posterior.std * noise.posterior
        wanted = (sample - config.shift_factor) * config.scaling_factor
    assert torch.allclose(found, wanted, atol=1e-4)


def test_maps_are_the_softmax_of_diffusers_attention(
    layout: tuple[str, Path], flow: FlowSurrogate, pipe: Any, calls: list[Call]
) -> None:
    """Recorded queries and keys, times the values of an untouched network, give what its attention mixes."""
    name, named = layout[0], calls[1][0]
    network = pipe.transformer
    kept: dict[str, Any] = {}

    def before(_: object, __: object, given: dict[str, Any]) -> None:
        kept["in"] = given

    attn = network.transformer_blocks[0].attn
    handles = [attn.register_forward_pre_hook(before, with_kwargs=True)]
    handles.append(attn.to_out[0].register_forward_pre_hook(lambda _, given: kept.update(mixed=given[0])))
    with torch.no_grad():
        network(**named)
    for handle in handles:
        handle.remove()
    reads = record(flow, name, named)
    image, text = attn.to_v(kept["in"]["hidden_states"]), attn.add_v_proj(kept["in"]["encoder_hidden_states"])
    values = torch.cat([image, text] if name == "sd35" else [text, image], 1).unflatten(-1, (2, 16)).transpose(1, 2)
    read = reads[0]
    weights = (read.query @ read.key.transpose(-1, -2) / 4).softmax(-1)  # 16 channels a head
    assert torch.allclose((weights @ values).transpose(1, 2).flatten(2), kept["mixed"], atol=1e-5)
    assert read.text is not None and weights.shape[-1] == text.shape[1] + 16 and weights.shape[-2] == 16
    maps = flow.recorder.maps(lambda: run(flow, name, named))
    assert torch.allclose(maps.cross[0].attention_map(), weights.mean(1)[..., read.text], atol=1e-6)
    assert torch.allclose(maps.own[0].attention_map(), weights.mean(1)[..., read.image], atol=1e-6)
    assert maps.cross[0].width == text.shape[1] and maps.own[0].width == 16
    total = maps.cross[0].attention_map().sum(-1) + maps.own[0].attention_map().sum(-1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    blocks = len(network.transformer_blocks) + len(getattr(network, "single_transformer_blocks", []))
    alone = 2 if name == "sd35" else 0  # the second attention of SD 3.5 medium's first blocks has no text
    assert (len(maps.cross), len(maps.own)) == (blocks, blocks + alone)


def test_every_attention_layer_has_our_processor(flow: FlowSurrogate) -> None:
    found = {type(m.processor).__module__ for m in flow.network.modules() if hasattr(m, "processor")}
    assert found and all(module.startswith("dladiff.") for module in found)


def test_low_rank_matrices_are_on_the_named_layers_and_add_nothing_first(
    layout: tuple[str, Path], flow: FlowSurrogate, calls: list[Call]
) -> None:
    named = calls[0][0]
    before = run(flow, layout[0], named)
    fresh = flow.fresh_network(3)
    names = [name for name, _ in flow.network.named_parameters() if ".lora_A.dynamic" in name]
    for end in flow.family.low_rank_layers(flow.network):
        assert any(f".{end}.lora_A" in f".{name}" for name in names), end
    assert len(fresh.matrices) == 2 * len(names)
    assert torch.allclose(run(flow, layout[0], named, fresh), before, atol=1e-6)
    assert flow.fresh_network(3) is fresh


def record(flow: FlowSurrogate, name: str, named: dict[str, Any]) -> Any:
    flow.recorder.reads = []
    run(flow, name, named)
    reads, flow.recorder.reads = flow.recorder.reads, None
    return reads


def run(flow: FlowSurrogate, name: str, named: dict[str, Any], network: Any = None) -> Tensor:
    """Return our velocity for the inputs of a call of the pipeline."""
    prompt = flow.prompt(TEXT)
    flow.recorder.text = prompt.embedding.shape[1]
    t = named["timestep"] / (1000 if name == "sd35" else 1)
    with torch.no_grad():
        return flow.family.velocity(network or flow.network, as_latents(name, named["hidden_states"]), t, prompt)
