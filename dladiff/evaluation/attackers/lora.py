"""LoRA (Hu et al. 2022) on the UNet's attention, by peft: low-rank matrices beside q, k, v and the output."""

from collections.abc import Sequence

import torch
from peft import LoraConfig

from dladiff.core.pixels import Pixels
from dladiff.evaluation.attackers.base import AttackSettings, Base, copied, customize, sample, with_parts

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


def lora(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Fine-tune low-rank matrices; alpha equals the rank."""
    unet = copied(base.pipe.unet)
    with torch.random.fork_rng(devices=[]):  # peft draws its first matrices from the global stream
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(r=settings.rank, lora_alpha=settings.rank, init_lora_weights="gaussian", target_modules=LAYERS)
        )
    learning = [p for name, p in unet.named_parameters() if "lora_" in name]
    customize(base, photos, settings, unet, base.pipe.text_encoder, seed, learning)
    sampler = with_parts(base, unet, base.pipe.text_encoder)
    return {prompt: sample(sampler, settings, prompt, range(count), seed) for prompt in prompts}
