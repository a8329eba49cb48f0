"""Hostile model folders: each gives one ModelError of one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.bundle import CHECKSUMS, parse_pins, read_pins
from dladiff.diffusion.catalogue import EMBEDDED
from dladiff.diffusion.complete import MAX_HEAD, weight_faults
from dladiff.diffusion.model_json import MAX_JSON, quoted
from dladiff.diffusion.surrogate import Surrogate
from dladiff.faces.clip_encoder import load_clip_encoder
from tests.support.model_layouts import change_json
from tests.support.refused_models import TENSOR, checked, head, refused

BRACKETS = b"[" * 200_000
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(EMBEDDED, tmp_path / "model")


@pytest.mark.parametrize(
    "path",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("content", [BRACKETS, b'{"a":' * 200_000, b"[]", b"7", b"\xff\xfe", b"{", b""])
def test_deeply_nested_configurations(path: str, content: bytes, folder: Path) -> None:
    (folder / path).write_bytes(content)
    refused(lambda: read_architecture(folder), f"{Path(path).name} (cannot be read as JSON|is no configuration)")
    assert Path(path).name in checked(folder)
    refused(lambda: Surrogate(folder, torch.device("cpu")), Path(path).name)


def test_a_huge_configuration_is_not_read(folder: Path) -> None:
    with (folder / "model_index.json").open("wb") as file:
        file.truncate(2**34)  # sparse
    refused(lambda: read_architecture(folder), f"bytes, at most {MAX_JSON} are read")
    with (folder / CHECKSUMS).open("wb") as file:
        file.truncate(2**34)
    refused(lambda: read_pins(folder), "not a list of checksums")


@pytest.mark.parametrize(
    "path, values",
    [
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"layers_per_block": [2, 10**6]}),
        ("unet/config.json", {"transformer_layers_per_block": [[1], [2]]}),
        ("unet/config.json", {"block_out_channels": [64] * 1000}),
        ("unet/config.json", {"block_out_channels": [2**40, 64]}),
        ("unet/config.json", {"cross_attention_dim": [96]}),
        ("unet/config.json", {"cross_attention_dim": float("nan")}),
        ("unet/config.json", {"in_channels": [8]}),
        ("unet/config.json", {"_class_name": ["a" * 10_000]}),
        ("vae/config.json", {"latent_channels": "8"}),
        ("vae/config.json", {"_class_name": "x\n\x1b[2J" * 10_000}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}),
        ("text_encoder/config.json", {"vocab_size": 2**62}),
        ("text_encoder/config.json", {"hidden_size": "96"}),
        ("text_encoder/config.json", {"architectures": 3}),
        ("text_encoder/config.json", {"a": {"b": {"c": {"d": {"e": {"f": {}}}}}}}),
        ("scheduler/scheduler_config.json", {"prediction_type": ["epsilon"]}),
        ("model_index.json", {"unet": ["my_code", "Mine"]}),
        ("model_index.json", {"_class_name": ["pipeline", "Mine"]}),
        ("model_index.json", {"text_encoder_2": ["my_code", "Mine"]}),
    ],
)
def test_settings_of_impossible_size_or_type(path: str, values: dict[str, Any], folder: Path) -> None:
    change_json(folder / path, **values)
    refused(lambda: read_architecture(folder), "^the model in .* (is not supported|wrong type|brings its own code)")
    assert "fault: " in checked(folder)


@pytest.mark.parametrize(
    "content",
    [
        head(BRACKETS),
        head(b'{"a":' * 200_000),
        head(b"{}", 2**63),
        head(b"{}", 2**64 - 1),
        head(b"{}", MAX_HEAD + 1),
        head(b"{}"),
        head(b"[]"),
        head(b"7"),
        b"",
        b"\0" * 7,
        head(json.dumps({"w": TENSOR | {"data_offsets": ["0", "4"]}}).encode()) + b"\0" * 3,
        head(json.dumps({"w": TENSOR | {"data_offsets": [0]}}).encode()),
        head(json.dumps({"w": TENSOR | {"data_offsets": [0, 2**70]}}).encode()),
        head(json.dumps({"w": TENSOR | {"data_offsets": [[], []]}}).encode()),
        head(json.dumps({"w": TENSOR | {"data_offsets": [0, 1e999]}}).encode()),
        head(json.dumps({"w": 3}).encode()),
    ],
    ids=lambda content: f"{content[:24]!r}",
)
def test_damaged_safetensors_headers(content: bytes, folder: Path) -> None:
    (folder / UNET).write_bytes(content)
    assert weight_faults(folder).keys() == {UNET}
    assert UNET in checked(folder)
    refused(lambda: Surrogate(folder, torch.device("cpu")), UNET)


@pytest.mark.parametrize(
    "tensor",
    [
        TENSOR | {"shape": [2**40]},
        TENSOR | {"shape": [-2]},
        TENSOR | {"shape": [2**62, 4]},
        TENSOR | {"dtype": "X9"},
        TENSOR | {"data_offsets": [2**40, 4]},
        TENSOR,  # one tensor of many
    ],
)
def test_safetensors_whose_shapes_are_not_their_data(tensor: dict[str, Any], folder: Path) -> None:
    (folder / UNET).write_bytes(head(json.dumps({"w": tensor}).encode()) + b"\0" * 4)
    refused(lambda: Surrogate(folder, torch.device("cpu")), "cannot be loaded|lacks")


@pytest.mark.parametrize(
    "path, why", [("tokenizer/tokenizer.json", "tokenizer.json "), ("tokenizer/tokenizer_config.json", "_config.json ")]
)
@pytest.mark.parametrize("content", [BRACKETS, b"[]", b"{}}", b"\xff"])
def test_deeply_nested_tokenizers(path: str, why: str, content: bytes, folder: Path) -> None:
    (folder / path).write_bytes(content)
    refused(lambda: Surrogate(folder, torch.device("cpu")), why)


@pytest.mark.parametrize(
    "mapped",
    [
        [],
        7,
        {"w": "../../../etc/passwd"},
        {"w": "/etc/passwd"},
        {"w": "x" * 5000 + ".safetensors"},
        {"w": "model.bin"},
        {"w": 3},
    ],
)
def test_an_index_of_weights_names_files_beside_it(mapped: Any, folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / f"{UNET}.index.json").write_text(json.dumps({"weight_map": mapped}))
    faults = weight_faults(folder)
    assert len(faults) == 1 and all(len(line) < 400 for line in faults.values())
    refused(lambda: Surrogate(folder, torch.device("cpu")), "unet")


@pytest.mark.parametrize(
    "content",
    [
        BRACKETS,
        b'{"files":' * 200_000,
        b'{"source":"","revision":"","licence":"","files":[]}',
        b'{"source":"","revision":"","licence":"","files":{"unet/config.json":{"sha256":"0","bytes":1e999}}}',
        b'{"source":"","revision":"","licence":"","files":{"../../etc/passwd":{"sha256":"0","bytes":1}}}',
        b'{"source":"","revision":"","licence":"","files":{"' + b"x" * 100_000 + b'":{"sha256":"0","bytes":1}}}',
        b" " * (MAX_JSON + 1),
    ],
    ids=lambda content: f"{content[:60]!r}",
)
def test_deeply_nested_checksums(content: bytes, folder: Path) -> None:
    (folder / CHECKSUMS).write_bytes(content)
    refused(lambda: parse_pins(content, "checksums.json"), "checksums.json")
    assert CHECKSUMS in checked(folder)
    refused(lambda: Surrogate(folder, torch.device("cpu")), CHECKSUMS)


def test_pickles_are_never_loaded(folder: Path) -> None:
    """A pickle without a safetensors file counts as missing weights."""
    for name, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / name / f"{stem}.safetensors").rename(folder / name / f"{stem}.bin")
    assert "is a pickle, which can run code" in checked(folder)
    refused(lambda: Surrogate(folder, torch.device("cpu")), "is missing")


@pytest.mark.parametrize(
    "settings, why",
    [
        (BRACKETS, "cannot be read as JSON"),
        (b"[]", "is no configuration"),
        (b'{"model_type": "bert\\n\\u001b"}', "is not a CLIP vision tower"),
        (b'{"model_type": "clip", "vision_config": {"num_hidden_layers": 1000000}}', "at most 128"),
        (b'{"model_type": "clip_vision_model", "image_size": 1e9}', "at most 100000"),
        (b'{"model_type": "clip_vision_model", "hidden_size": "many"}', "cannot be loaded"),
        (b'{"model_type": "clip_vision_model"}', "cannot be loaded"),
    ],
)
def test_deeply_nested_clip_configurations(settings: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(settings)
    refused(lambda: load_clip_encoder(f"clip:{tmp_path}"), why)


def test_quoted_text_stays_on_one_line() -> None:
    assert quoted("a\nb\x1b[2J") == "a?b?[2J"
    assert len(quoted("x" * 10**6)) < 100
