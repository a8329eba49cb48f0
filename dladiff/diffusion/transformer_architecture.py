"""Architecture of a transformer model's folder, read from its configurations. Imports no torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dladiff.diffusion.model_facts import Architecture, size_fault
from dladiff.diffusion.model_json import quoted, read_object
from dladiff.diffusion.transformer_layouts import Layout
from dladiff.diffusion.vae_architecture import read_vae
from dladiff.errors import ModelError

MAX_TEXT_NUMBER = 10_000_000
"""Largest number in a language model's configuration; the rotary base of Qwen's is 10^6."""
NO_FULL = (
    "finetuning.surrogate: a transformer is trained as low-rank matrices only; set it to lora, or leave it out in a "
    "transformer's profile"
)
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def read_transformer(root: Path, layout: Layout, supported: str) -> Architecture:
    """Return the architecture of a folder in a known layout. Raises ModelError: names what is not supported."""
    folders = [name for part in layout.texts for name in (f"{part.folder}/config.json", part.tokenizer)]
    paths = ["transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json", *folders]
    missing = [f"{path} is missing" for path in paths if not (root / path).exists()]
    if missing:
        raise ModelError(f"the model in {root} is not supported: {'; '.join(missing)}; {supported}")
    transformer = read_object(root / "transformer" / "config.json")
    texts = [read_object(root / part.folder / "config.json") for part in layout.texts]
    vae = read_vae(root / "vae")
    sizes = [("transformer", size_fault(transformer))]
    sizes += [(part.folder, size_fault(t, most=MAX_TEXT_NUMBER)) for part, t in zip(layout.texts, texts, strict=True)]
    faults = [f"{name} {fault}" for name, fault in sizes if fault]
    channels = vae.channels
    faults = faults or [*_faults(layout, transformer, texts, channels), *_scheduler_faults(root)]
    if vae.kind != layout.vae:
        faults.append(f"vae is a {vae.kind}, not a {layout.vae}")
    if faults:
        raise ModelError(f"the model in {root} is not supported: {'; '.join(faults)}; {supported}")
    return Architecture(
        context=transformer.get("joint_attention_dim", 0),
        latent_channels=channels,
        prediction="flow",
        scaling=vae.scaling,
        text_encoders=len(texts),
        family=layout.family,
        layers=transformer.get("num_layers", 0) + transformer.get("num_single_layers", 0),
        guidance=bool(transformer.get("guidance_embeds", False)),
    )


def settings_fault(architecture: Architecture, compared: bool, rank: int, gpu_memory: str) -> str | None:
    """Return the setting that does not suit a transformer, and what to do; None: all do, or it is no transformer.

    `compared`: whether layer 1 is a compared method; `rank`: of the surrogate's matrices, 0 for whole weights.
    """
    if not architecture.family:
        return None
    if compared:
        return "protection: compared methods attack the U-Nets of SD 1.x, SD 2.x and SDXL; choose such a profile"
    if not rank:
        return NO_FULL
    if gpu_memory != "any":
        return "gpu_memory: its settings are for Stable Diffusion 1 and 2; leave this setting out"
    return None


def _faults(layout: Layout, transformer: dict[str, Any], texts: list[dict[str, Any]], channels: int) -> Iterator[str]:
    if transformer.get("_class_name") != layout.transformer:
        yield f"transformer is a {quoted(transformer.get('_class_name'))}, not a {layout.transformer}"
        return
    for part, text in zip(layout.texts, texts, strict=True):
        if part.kind not in (text.get("architectures") or []):
            found = (text.get("architectures") or ["of unknown kind"])[0]
            yield f"{part.folder} is {quoted(found)}, not a {part.kind}"
            return
    if (taken := transformer.get("in_channels")) != layout.packed * channels:
        yield f"transformer takes {quoted(taken)} channels, the vae's latents have {channels} (x {layout.packed})"
    context, pooled = layout.widths(texts)
    if (wanted := transformer.get("joint_attention_dim")) != context:
        yield f"the text encoders give {context} channels, the transformer takes {quoted(wanted)}"
    if pooled and (wanted := transformer.get("pooled_projection_dim")) != pooled:
        yield f"the text encoders give {pooled} pooled channels, the transformer takes {quoted(wanted)}"


def _scheduler_faults(root: Path) -> Iterator[str]:
    kind = read_object(root / "scheduler" / "scheduler_config.json").get("_class_name")
    if kind != SCHEDULER:
        yield f"scheduler is a {quoted(kind)}, not a {SCHEDULER}"
