"""LoRA (Hu et al. 2022) on the attention layers, by peft: low-rank updates of q, k, v and the output.

On transformers the layers are those of diffusers' DreamBooth-LoRA scripts, which are `flow.KINDS`.
"""

import copy
from collections.abc import Sequence

import torch
from peft import LoraConfig

from dladiff.core.arrays import Pixels
from dladiff.evaluation.attackers import flow
from dladiff.evaluation.attackers.base import Base, customize, sample, sampling_pipeline
from dladiff.evaluation.attacks import Attack, AttackSettings

ATTACK = Attack(
    name="lora",
    function="lora",
    kind="fine-tuning",
    paper="Hu et al. 2022",
    year=2022,
    about="low-rank matrices on the attention layers (peft)",
    source="diffusers' train_dreambooth_lora",
    full_size=AttackSettings(steps=500, lr=1e-4, batch=1, rank=4, sampling_steps=25),
    transformer=AttackSettings(steps=500, lr=1e-4, batch=1, rank=4, sampling_steps=28, guidance=0.0),
    tiny=AttackSettings(steps=300, lr=5e-3, batch=4, rank=16, guidance=2.0),
)

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


def lora(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Fine-tune low-rank matrices, with alpha equal to the rank; return `count` images of each prompt."""
    if base.transformer:
        return _on_transformer(base, photos, settings, prompts, count, seed)
    unet = copy.deepcopy(base.pipe.unet)
    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(r=settings.rank, lora_alpha=settings.rank, init_lora_weights="gaussian", target_modules=LAYERS)
        )
    trainable = [p for name, p in unet.named_parameters() if "lora_" in name]
    customize(base, photos, settings, unet, base.pipe.text_encoder, seed, trainable)
    sampler = sampling_pipeline(base, unet, base.pipe.text_encoder)
    return {prompt: sample(sampler, settings, prompt, range(count), seed) for prompt in prompts}


def _on_transformer(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Fine-tune matrices on the base's own transformer, which is too large to copy, and remove them afterwards."""
    transformer = base.pipe.transformer
    layers = list(flow.kind_of(base).layers)
    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        torch.manual_seed(seed)
        transformer.add_adapter(
            LoraConfig(r=settings.rank, lora_alpha=settings.rank, init_lora_weights="gaussian", target_modules=layers)
        )
    try:
        trainable = [p for name, p in transformer.named_parameters() if "lora_" in name]
        for parameter in trainable:
            parameter.data = parameter.data.float()
        flow.train(base, base.pipe, photos, settings, seed, trainable)
        with torch.autocast(base.device.type, torch.bfloat16, enabled=base.device.type == "cuda"):
            return {prompt: flow.pictures(base, base.pipe, settings, prompt, count, seed) for prompt in prompts}
    finally:
        transformer.unload_lora()
        transformer.requires_grad_(False)
