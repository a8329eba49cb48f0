"""Whether a model folder holds all that a surrogate needs: weights, tokenizers, noise schedule. Imports no torch.

`model_faults` is the one check of plan, `models check`, `fetch`, `mirror` and loading. transformers and diffusers only
warn about most of these faults, and go on with random weights, an empty vocabulary or another schedule.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dladiff.diffusion.model_json import MAX_JSON, parsed, quoted, read_object
from dladiff.diffusion.transformer_complete import language_blocks, transformer_blocks, transformer_faults
from dladiff.diffusion.transformer_layouts import QWEN3, QWEN_VL, T5, layout_of
from dladiff.errors import ModelError

MAX_HEAD = MAX_JSON
"""Largest safetensors header read, bytes: 40 times that of SDXL's UNet, the longest known."""
WEIGHTS = frozenset({".safetensors"})
"""Suffixes of weight files that an index may name."""
MAX_NAME = 200
"""Longest name of a weight file, characters: file systems allow at most 255 bytes."""
PADDING = 256
"""Embedding rows beyond the vocabulary that are accepted: some models pad the rows to a multiple of up to this."""
SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
"""Settings of the noise schedule; diffusers replaces missing ones by those of another model."""
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files that hold a tokenizer's vocabulary: either is enough."""
SHOWN = 3
"""Missing tensors that a message names."""

Head = dict[str, dict[str, Any]]
"""Tensor name to dtype, shape and data_offsets."""


def model_faults(root: Path) -> dict[str, str]:
    """Return a message for each file, by path, that is missing, cut off, or does not fit its configuration.

    Reads configurations, vocabularies and the headers of weight files. The architecture was checked before.
    """
    if (root / "transformer").is_dir() and (layout := layout_of(read_object(root / "model_index.json"))):
        return transformer_faults(root, layout, _part_faults, _tokenizer_faults)
    faults = weight_faults(root)
    for ending in ("", "_2"):
        if (root / f"text_encoder{ending}").is_dir():
            faults |= dict(_tokenizer_faults(root, f"tokenizer{ending}", f"text_encoder{ending}"))
    path = "scheduler/scheduler_config.json"
    scheduler = read_object(root / path)
    if lacking := [name for name in SCHEDULE if scheduler.get(name) is None]:
        faults[path] = f"{path} lacks {', '.join(lacking)}"
    return faults


def weight_faults(root: Path) -> dict[str, str]:
    """Return a message for each weight file, by path, that is missing, shorter than its header says, or lacks tensors.

    Reads headers only.
    """
    faults: dict[str, str] = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (root / part).is_dir():
            _part_faults(root, part, faults)
    return faults


def vae_faults(folder: Path) -> dict[str, str]:
    """Return a message for each weight file of a VAE's folder, by path; the configuration was checked before."""
    faults: dict[str, str] = {}
    _part_faults(folder.parent, folder.name, faults, "vae")
    return faults


def incomplete_vae(folder: Path) -> str | None:
    """Return what a VAE's folder lacks, or the whole model that lends its VAE; None: nothing.

    What a model lacks elsewhere no latent push needs. But it was meant to be whole, and a later run may need it.
    """
    root = folder.parent
    network = any((root / name).is_dir() for name in ("unet", "transformer"))
    whole = folder.name == "vae" and (root / "model_index.json").is_file() and network
    faults = model_faults(root) if whole else vae_faults(folder)
    what = f"the model in {root}" if whole else f"the VAE in {folder}"
    return f"{what} is incomplete: {'; '.join(faults.values())}; fetch it again" if faults else None


def single_file_fault(file: Path) -> str:
    """Return why a file is no model folder, and what to do; `conversion` has the lines."""
    return (
        f"{file} is a single-file checkpoint, and models are read as folders in the diffusers layout: convert it; "
        f"dladiff models check {file} prints the three lines of Python that do it"
    )


def conversion(file: Path) -> list[str]:
    """Return the lines of Python that convert a single-file checkpoint to a folder beside it."""
    kind = "StableDiffusionXLPipeline" if _is_xl(file) else "StableDiffusionPipeline"
    return [
        f"from diffusers import {kind}",
        f"pipe = {kind}.from_single_file({str(file)!r})",
        f"pipe.save_pretrained({str(file.with_suffix(''))!r})",
    ]


def _is_xl(file: Path) -> bool:
    """Return whether a single-file checkpoint has SDXL's second text encoder."""
    try:
        return any(name.startswith("conditioner.embedders.1.") for name in _head(file))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return False


def _part_faults(root: Path, part: str, faults: dict[str, str], kind: str = "") -> None:
    kind = kind or part
    stem = "diffusion_pytorch_model" if kind in ("unet", "vae", "transformer") else "model"
    index = root / part / f"{stem}.safetensors.index.json"
    names = [f"{stem}.safetensors"]
    if not (root / part / names[0]).is_file() and index.is_file():
        mapped = read_object(index).get("weight_map", {})
        named = {str(name) for name in mapped.values()} if isinstance(mapped, dict) else set()
        where, strange = f"{part}/{index.name}", [name for name in sorted(named) if not _is_weights(name)]
        if strange or not named:
            what = quoted(strange[0]) if strange else "nothing"
            faults[where] = f"{where} names {what}, which is not a weight file in its folder"
            return
        names = sorted(named)
    heads: Head = {}
    sound = True
    for path in (f"{part}/{name}" for name in names):
        fault = _weight_fault(root, path, heads)
        sound = sound and fault is None
        if fault:
            faults[path] = fault
    if sound and (lacking := _lacking(heads, kind, read_object(root / part / "config.json"))):
        faults[f"{part}/{names[0]}"] = f"{part}/{names[0]} lacks tensors of {', '.join(lacking[:SHOWN])}"


def _weight_fault(root: Path, path: str, heads: Head) -> str | None:
    """Return the fault of a safetensors file, or None; add its tensors to `heads`."""
    file = root / path
    try:
        if not file.is_file():
            return f"{path} is missing{_variant(root, file)}"
        size = file.stat().st_size
        head = _head(file)
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        end = max(int(entry["data_offsets"][1]) for entry in head.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return f"{path} is not a safetensors file, or its header is cut off"
    heads.update(head)
    whole = 8 + length + end
    return None if size == whole else f"{path} has {size} of {whole} bytes: an incomplete copy"


def _variant(root: Path, file: Path) -> str:
    """Return what to do if only the fp16 variant of a weight file is there, else ""."""
    if not any(file.parent.glob("*.fp16*.safetensors")) and not any(file.parent.glob("*.index.fp16.json")):
        return ""
    code = f'from diffusers import DiffusionPipeline as P; P.from_pretrained("{root}", variant="fp16")'
    return (
        ", only its fp16 variant is there, which is not read; write the model without variant: "
        f"python -c '{code}.save_pretrained(\"NEW_FOLDER\")'"
    )


def _head(file: Path) -> Head:
    """Return the tensors of a safetensors file: 8-byte length, JSON header of that length, data.

    Raises ValueError, TypeError, AttributeError for a damaged header, OSError.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        head = parsed(stream.read(length)) if length <= min(MAX_HEAD, size) else {}
    return {name: entry for name, entry in head.items() if name != "__metadata__"}


def _lacking(heads: Head, part: str, config: dict[str, Any]) -> list[str]:
    """Return the blocks and layers of a configuration that have no tensor."""
    names = "\n".join(f".{name}." for name in heads)
    return [block for block in _blocks(part, config) if f".{block}." not in names]


def _blocks(part: str, config: dict[str, Any]) -> Iterator[str]:
    if part == "unet":
        yield from ("conv_in", "time_embedding", "conv_out")
        for side in ("down", "up"):
            yield from (f"{side}_blocks.{i}" for i in range(len(config.get(f"{side}_block_types", ()))))
    elif part == "vae":
        yield from _vae_blocks(config)
    elif part == "transformer":
        yield from transformer_blocks(config)
    elif part in (T5, QWEN3, QWEN_VL):
        yield from language_blocks(config)
    else:
        yield from ("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm")
        yield from (f"encoder.layers.{i}" for i in range(config.get("num_hidden_layers", 12)))


def _vae_blocks(config: dict[str, Any]) -> Iterator[str]:
    kind = config.get("_class_name")
    if kind == "AutoencoderTiny":
        blocks = config.get("num_encoder_blocks", (1, 3, 3, 3))
        yield from (f"encoder.layers.{i}" for i in range(len(blocks) + sum(blocks) + 1))
        yield "decoder.layers.0"
        return
    yield from ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")
    if kind == "AutoencoderKLQwenImage":
        count, each = len(config.get("dim_mult", (1, 2, 4, 4))), config.get("num_res_blocks", 2)
        yield from (f"encoder.down_blocks.{i}" for i in range(count * (each + 1) - 1))
        yield from (f"decoder.up_blocks.{i}" for i in range(count))
        return
    if kind == "AutoencoderKLFlux2":
        yield from ("bn.running_mean", "bn.running_var")
    count = len(config.get("block_out_channels", ()))
    yield from (f"{side}_blocks.{i}" for side in ("encoder.down", "decoder.up") for i in range(count))


def _tokenizer_faults(root: Path, name: str, encoder: str) -> Iterator[tuple[str, str]]:
    found = next((files for files in VOCABULARIES if all((root / name / file).is_file() for file in files)), None)
    if found is None:
        yield name, f"{name} has no vocabulary: tokenizer.json, or vocab.json and merges.txt, is missing"
        return
    path = f"{name}/{found[0]}"
    config = read_object(root / encoder / "config.json")
    rows = config.get("vocab_size", 49408)
    try:
        ids, merges = _vocabulary(root / name, found)
    except ModelError as error:
        yield path, str(error)
        return
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        yield path, f"{path} is no vocabulary"
        return
    if not ids or max(ids) >= rows or len(ids) < rows - PADDING:
        yield path, f"{path} has {len(ids)} words, {encoder} has embeddings of {rows}: they do not belong together"
    elif not merges:
        yield f"{name}/{found[-1]}", f"{name}/{found[-1]} has no merges, so that words would be split into letters"
    settings = read_object(root / name / "tokenizer_config.json").get("model_max_length")
    most = config.get("max_position_embeddings", 77)
    if not isinstance(settings, int) or not 0 < settings <= most:
        path = f"{name}/tokenizer_config.json"
        yield path, f"{path} has the model_max_length {quoted(settings)}, {encoder} takes at most {most} tokens"


def _vocabulary(folder: Path, files: tuple[str, ...]) -> tuple[set[int], int]:
    """Return a tokenizer's ids and its number of merges. Raises ModelError and what damaged files raise."""
    content = read_object(folder / files[0])
    if len(files) == 1:
        model = content["model"]
        added = [int(entry["id"]) for entry in content.get("added_tokens", ())]
        return {*map(int, model["vocab"].values()), *added}, len(model["merges"])
    merges = folder / files[1]
    if merges.stat().st_size > MAX_JSON:
        raise ValueError("too large")
    lines = merges.read_text(encoding="utf-8").splitlines()
    return set(map(int, content.values())), sum(bool(line) and not line.startswith("#version") for line in lines)


def _is_weights(name: str) -> bool:
    return Path(name).name == name and Path(name).suffix in WEIGHTS and len(name) <= MAX_NAME
