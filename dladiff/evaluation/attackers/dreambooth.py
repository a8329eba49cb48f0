"""DreamBooth (Ruiz et al. 2023), without the prior term: the UNet alone, or the UNet and the text encoder."""

from collections.abc import Sequence

from dladiff.core.pixels import Pixels
from dladiff.evaluation.attackers.base import AttackSettings, Base, copied, customize, sample, with_parts


def dreambooth(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Fine-tune the UNet."""
    unet = copied(base.pipe.unet)
    customize(base, photos, settings, unet, base.pipe.text_encoder, seed, unet.parameters())
    sampler = with_parts(base, unet, base.pipe.text_encoder)
    return {prompt: sample(sampler, settings, prompt, range(count), seed) for prompt in prompts}


def dreambooth_text(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Fine-tune the UNet and the text encoder."""
    unet, text = copied(base.pipe.unet), copied(base.pipe.text_encoder)
    customize(base, photos, settings, unet, text, seed, [*unet.parameters(), *text.parameters()])
    sampler = with_parts(base, unet, text)
    return {prompt: sample(sampler, settings, prompt, range(count), seed) for prompt in prompts}
