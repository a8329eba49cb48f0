"""Models of which files are missing or do not belong together: found before they are loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dladiff.diffusion.catalogue import EMBEDDED
from dladiff.diffusion.complete import model_faults
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schema import method_config
from pipeline.cli.main import main
from pipeline.models.fingerprint import missing
from tests.support.model_layouts import change_json
from tests.support.refused_models import TENSOR, checked, head, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def vocab_and_merges(folder: Path, words: int | None = None, merges: bool = True) -> None:
    """Write the tokenizer as SD 1.5 publishes it: vocab.json and merges.txt."""
    own = folder / "tokenizer"
    found = json.loads((own / "tokenizer.json").read_text())
    vocab = found["model"]["vocab"] | {entry["content"]: entry["id"] for entry in found["added_tokens"]}
    (own / "vocab.json").write_text(json.dumps(dict(list(vocab.items())[:words])))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in found["model"]["merges"]]
    (own / "merges.txt").write_text("\n".join(["#version: 0.2", *(lines if merges else [])]) + "\n")
    (own / "tokenizer.json").unlink()


def test_a_tokenizer_of_two_files_gives_the_same_tokens(folder: Path) -> None:
    vocab_and_merges(folder)
    assert model_faults(folder) == {}
    text = "a photo of sks person"
    ids = [Surrogate(one, torch.device("cpu")).encoders[0].tokens(text).tolist() for one in (folder, EMBEDDED)]
    assert ids[0] == ids[1]


def without(path: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / path).unlink()


def changed(path: str, **values: Any) -> Callable[[Path], Any]:
    return lambda folder: change_json(folder / path, **values)


TOKENIZER_CONFIG, SCHEDULER = "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (without("tokenizer/tokenizer.json"), "tokenizer has no vocabulary: tokenizer.json, or vocab.json and merges"),
        (lambda folder: vocab_and_merges(folder, 2), "tokenizer/vocab.json has 2 words, text_encoder has .* of 877"),
        (lambda folder: vocab_and_merges(folder, merges=False), "tokenizer/merges.txt has no merges"),
        (changed("text_encoder/config.json", vocab_size=500), "has 877 words, text_encoder has embeddings of 500"),
        (changed("tokenizer/tokenizer.json", model={"vocab": 3, "merges": []}), "tokenizer.json is no vocabulary"),
        (without(TOKENIZER_CONFIG), "tokenizer_config.json is missing"),
        (changed(TOKENIZER_CONFIG, model_max_length=None), "model_max_length None, text_encoder takes at most 77"),
        (changed(SCHEDULER, beta_schedule=None, beta_end=None), "scheduler_config.json lacks beta_end, beta_schedule"),
        (changed("unet/config.json", down_block_types=["DownBlock2D"] * 3), "lacks tensors of down_blocks.2"),
        (changed("text_encoder/config.json", num_hidden_layers=3), "lacks tensors of encoder.layers.2"),
        (changed("vae/config.json", block_out_channels=[32] * 7), r"vae/.* lacks tensors of encoder.down_blocks"),
    ],
)
def test_plan_check_and_loading_find_what_is_incomplete(harm: Callable[[Path], Any], why: str, folder: Path) -> None:
    harm(folder)
    (line,) = missing(method_config("tiny", None, {"model": str(folder)}))
    assert re.search(why, line) and "\n" not in line
    assert re.search(why, checked(folder))
    refused(lambda: Surrogate(folder, torch.device("cpu")), why)


def test_a_model_of_fp16_files_only_says_what_to_do(folder: Path) -> None:
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
    (line,) = missing(method_config("tiny", None, {"model": str(folder)}))
    assert "only its fp16 variant is there" in line and 'variant="fp16").save_pretrained(' in line
    assert checked(folder).count("only its fp16 variant is there") == 3


@pytest.mark.parametrize(
    ("key", "kind"), [("x", "StableDiffusionPipeline"), ("conditioner.embedders.1.y", "StableDiffusionXLPipeline")]
)
def test_a_single_file_checkpoint_is_converted_by_three_lines(key: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "photoreal v2.safetensors"
    file.write_bytes(head(json.dumps({key: TENSOR}).encode()) + b"\0" * 4)
    found = CliRunner().invoke(main, ["models", "check", str(file)])
    assert found.exit_code == 1
    first, *code = found.output.splitlines()
    assert first.startswith(f"fault: {file} is a single-file checkpoint")
    assert [line.strip() for line in code] == [
        f"from diffusers import {kind}",
        f"pipe = {kind}.from_single_file({str(file)!r})",
        f"pipe.save_pretrained({str(tmp_path / 'photoreal v2')!r})",
    ]
    (line,) = missing(method_config("tiny", None, {"model": str(file)}))
    assert line.startswith("model: ") and "single-file checkpoint" in line and "dladiff models check" in line
    refused(lambda: Surrogate(file, torch.device("cpu")), "single-file checkpoint")
