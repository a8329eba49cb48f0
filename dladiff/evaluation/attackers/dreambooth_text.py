"""DreamBooth on the UNet and the text encoder, as the attacker of Anti-DreamBooth (Van Le et al. 2023) trains it."""

import copy
from collections.abc import Sequence

from dladiff.core.arrays import Pixels
from dladiff.evaluation.attackers.base import Base, customize, sample, sampling_pipeline
from dladiff.evaluation.attacks import Attack, AttackSettings

ATTACK = Attack(
    name="dreambooth_text",
    function="dreambooth_text",
    kind="fine-tuning",
    paper="Ruiz et al. 2023",
    year=2023,
    about="UNet and text encoder, no prior term",
    source="as dreambooth",
    full_size=AttackSettings(steps=400, lr=5e-6, batch=4, sampling_steps=25),
    tiny=AttackSettings(steps=300, lr=5e-4, batch=4, guidance=2.0),
)


def dreambooth_text(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Fine-tune the UNet and the text encoder; return `count` images of each prompt."""
    unet, text = copy.deepcopy(base.pipe.unet), copy.deepcopy(base.pipe.text_encoder)
    customize(base, photos, settings, unet, text, seed, [*unet.parameters(), *text.parameters()])
    sampler = sampling_pipeline(base, unet, text)
    return {prompt: sample(sampler, settings, prompt, range(count), seed) for prompt in prompts}
