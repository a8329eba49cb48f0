"""Folders of transformer models: what is read, what is refused with the name of the part, what is incomplete."""

import json
from pathlib import Path
from typing import Any

import pytest

from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.bundle import model_files
from dladiff.diffusion.catalogue import MODELS, profile_faults
from dladiff.diffusion.complete import model_faults
from dladiff.errors import ModelError
from tests.support.model_layouts import change_json
from tests.support.transformer_layouts import TRANSFORMERS, write_transformer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_transformer(tmp_path_factory.mktemp("read") / name, name) for name in TRANSFORMERS}


def test_layouts_are_read_and_told_apart_from_the_published_models(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        found, known = read_architecture(folder), MODELS[name].architecture
        assert (found.family, found.prediction, found.guidance) == (known.family, "flow", known.guidance)
        assert (found.latent_channels, found.scaling) == (known.latent_channels, known.scaling)
        assert found.text_encoders == known.text_encoders and model_faults(folder) == {}
        faults = profile_faults(folder, name)
        assert any(f.startswith("number of blocks is") for f in faults) and any(
            "cross-attention is" in f for f in faults
        )
    assert any("input of guidance is False" in f for f in profile_faults(folders["flux1-schnell"], "flux1"))


def test_the_files_that_a_surrogate_loads(folders: dict[str, Path]) -> None:
    """All of a folder but what save_pretrained writes beside them."""
    for folder in folders.values():
        written = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        assert written - model_files(folder).keys() <= {"text_encoder/generation_config.json"}


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "sd35",
        "transformer/config.json",
        {"_class_name": "FluxTransformer2DModel"},
        "transformer is a FluxTransformer2DM",
    ),
    (
        "sd35",
        "transformer/config.json",
        {"in_channels": 33},
        "transformer takes 33 channels, the vae's latents have 16",
    ),
    (
        "sd35",
        "transformer/config.json",
        {"joint_attention_dim": 128},
        "encoders give 64 channels, the transformer takes 1",
    ),
    (
        "sd35",
        "transformer/config.json",
        {"pooled_projection_dim": 9},
        "give 64 pooled channels, the transformer takes 9",
    ),
    (
        "sd35",
        "transformer/config.json",
        {"num_layers": 10_000},
        "'num_layers' 10000, at most 128|num_layers 10000, at mo",
    ),
    (
        "sd35",
        "text_encoder_3/config.json",
        {"architectures": ["CLIPTextModel"]},
        "text_encoder_3 is CLIPTextModel, not",
    ),
    ("sd35", "text_encoder_3/config.json", {"vocab_size": 10**9}, "text_encoder_3 has vocab_size 1000000000"),
    (
        "sd35",
        "scheduler/scheduler_config.json",
        {"_class_name": "DDIMScheduler"},
        "scheduler is a DDIMScheduler, not a Fl",
    ),
    ("flux1", "transformer/config.json", {"in_channels": 384}, "transformer takes 384 channels"),
    ("flux2-klein", "vae/config.json", {"_class_name": "AutoencoderKL"}, "vae is a AutoencoderKL, not a|takes"),
    (
        "qwen-image",
        "text_encoder/config.json",
        {"architectures": ["Qwen3ForCausalLM"]},
        "is Qwen3ForCausalLM, not a Qwen2",
    ),
]


@pytest.mark.parametrize(("name", "path", "change", "message"), WRONG)
def test_other_architectures_are_refused(
    folders: dict[str, Path], name: str, path: str, change: dict[str, Any], message: str
) -> None:
    file = folders[name] / path
    before = file.read_text()
    try:
        change_json(file, **change)
        with pytest.raises(ModelError, match=message):
            read_architecture(folders[name])
    finally:
        file.write_text(before)


@pytest.mark.parametrize("path", ["tokenizer_3", "scheduler/scheduler_config.json", "text_encoder_2/config.json"])
def test_a_missing_part_is_named(folders: dict[str, Path], path: str) -> None:
    place, aside = folders["sd35"] / path, folders["sd35"].parent / "aside"
    place.rename(aside)
    try:
        with pytest.raises(ModelError, match=f"{path} is missing; supported are SD 1.x.*Qwen-Image"):
            read_architecture(folders["sd35"])
    finally:
        aside.rename(place)


def test_code_of_their_own_is_refused(folders: dict[str, Path]) -> None:
    file = folders["qwen-image"] / "model_index.json"
    before = file.read_text()
    try:
        change_json(file, transformer=["transformer_own", "QwenImageTransformer2DModel"])
        with pytest.raises(ModelError, match="brings its own code for transformer, which is not run"):
            read_architecture(folders["qwen-image"])
    finally:
        file.write_text(before)


BROKEN: list[tuple[str, str, Any, str]] = [
    ("sd35", "tokenizer_3/tokenizer.json", b"{", "cannot be read as JSON"),
    (
        "sd35",
        "tokenizer_3/tokenizer.json",
        b'{"model": {"vocab": [["a", 0]]}}',
        "has 1 words, text_encoder_3 has embed",
    ),
    ("flux2-klein", "tokenizer/tokenizer.json", b'{"model": {"vocab": {"a": 100000}}}', "they do not belong together"),
    ("flux1", "scheduler/scheduler_config.json", b'{"num_train_timesteps": 0}', "has the num_train_timesteps 0"),
    ("flux1", "scheduler/scheduler_config.json", b'{"num_train_timesteps": 1000, "shift": 0}', "has the shift 0"),
    ("qwen-image", "transformer/diffusion_pytorch_model.safetensors", None, "is missing"),
    ("qwen-image", "text_encoder/model.safetensors", b"short", "is not a safetensors file, or its header is cut off"),
]


@pytest.mark.parametrize(("name", "path", "content", "message"), BROKEN)
def test_incomplete_folders_are_refused_before_loading(
    folders: dict[str, Path], name: str, path: str, content: bytes | None, message: str
) -> None:
    file = folders[name] / path
    before = file.read_bytes()
    try:
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        faults = model_faults(folders[name])
        assert len(faults) == 1 and message in next(iter(faults.values())), faults
    finally:
        file.write_bytes(before)


def test_a_block_without_tensors_is_named(folders: dict[str, Path]) -> None:
    file = folders["flux1"] / "transformer" / "config.json"
    before = file.read_text()
    try:
        change_json(file, num_single_layers=json.loads(before)["num_single_layers"] + 1)
        assert "lacks tensors of single_transformer_blocks.2" in next(iter(model_faults(folders["flux1"]).values()))
    finally:
        file.write_text(before)
