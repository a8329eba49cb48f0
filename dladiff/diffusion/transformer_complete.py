"""Whether a transformer model's folder holds all that a surrogate needs. Imports no torch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dladiff.diffusion.model_json import quoted, read_object
from dladiff.diffusion.transformer_layouts import CLIP, CLIP_PROJECTED, Layout
from dladiff.errors import ModelError

STEPS = "num_train_timesteps"
PartFaults = Callable[[Path, str, dict[str, str], str], None]
"""Adds the faults of a part's weight files to a dictionary; the last argument is the kind of the part."""
TokenizerFaults = Callable[[Path, str, str], Iterator[tuple[str, str]]]


def transformer_faults(root: Path, layout: Layout, part: PartFaults, tokenizer: TokenizerFaults) -> dict[str, str]:
    """Return a message for each file, by path, that is missing, cut off, or does not fit its configuration.

    `part` and `tokenizer` check weight files and CLIP's tokenizers. The architecture was checked before.
    """
    faults: dict[str, str] = {}
    part(root, "transformer", faults, "transformer")
    part(root, "vae", faults, "vae")
    for text in layout.texts:
        clip = text.kind in (CLIP, CLIP_PROJECTED)
        part(root, text.folder, faults, "clip" if clip else text.kind)
        faults |= dict((tokenizer if clip else vocabulary_faults)(root, text.tokenizer, text.folder))
    path = "scheduler/scheduler_config.json"
    scheduler = read_object(root / path)
    steps, shift = scheduler.get(STEPS), scheduler.get("shift", 1.0)
    if type(steps) is not int or not 1 < steps <= 100_000:
        faults[path] = f"{path} has the {STEPS} {quoted(steps)}"
    elif type(shift) not in (int, float) or not 0 < shift <= 100:
        faults[path] = f"{path} has the shift {quoted(shift)}"
    return faults


def transformer_blocks(config: dict[str, Any]) -> Iterator[str]:
    """Yield the blocks of a transformer that must have tensors."""
    yield "proj_out"
    yield from (f"transformer_blocks.{i}" for i in range(config.get("num_layers", 0)))
    yield from (f"single_transformer_blocks.{i}" for i in range(config.get("num_single_layers", 0)))


def language_blocks(config: dict[str, Any]) -> Iterator[str]:
    """Yield the layers of T5 or of a Qwen model that must have tensors."""
    own = config.get("text_config")
    config = config | own if isinstance(own, dict) else config
    if "d_model" in config:
        yield from (f"encoder.block.{i}" for i in range(config.get("num_layers", 6)))
    else:
        yield "embed_tokens"
        yield from (f"layers.{i}" for i in range(config.get("num_hidden_layers", 32)))


def vocabulary_faults(root: Path, name: str, encoder: str) -> Iterator[tuple[str, str]]:
    """Yield the fault of the tokenizer of T5 or of a Qwen model: no vocabulary, or one of another model."""
    folder, config = root / name, read_object(root / encoder / "config.json")
    own = config.get("text_config")
    rows = (config | own if isinstance(own, dict) else config).get("vocab_size", 0)
    file = next((f for f in ("tokenizer.json", "vocab.json") if (folder / f).is_file()), None)
    if file is None or (file == "vocab.json" and not (folder / "merges.txt").is_file()):
        yield name, f"{name} has no vocabulary: tokenizer.json, or vocab.json and merges.txt, is missing"
        return
    path = f"{name}/{file}"
    try:
        content = read_object(folder / file)
        found = content["model"]["vocab"] if file == "tokenizer.json" else content
        count = len(found)
        highest = count - 1 if isinstance(found, list) else max(map(int, found.values()))
    except ModelError as error:
        yield path, str(error)
        return
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        yield path, f"{path} is no vocabulary"
        return
    if highest >= rows or count < rows / 2:
        yield path, f"{path} has {count} words, {encoder} has embeddings of {rows}: they do not belong together"
