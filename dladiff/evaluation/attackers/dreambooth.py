"""DreamBooth (Ruiz et al. 2023), without the prior term, on the UNet alone."""

import copy
from collections.abc import Sequence

from dladiff.core.arrays import Pixels
from dladiff.evaluation.attackers.base import Base, customize, sample, sampling_pipeline
from dladiff.evaluation.attacks import Attack, AttackSettings

ATTACK = Attack(
    name="dreambooth",
    function="dreambooth",
    kind="fine-tuning",
    paper="Ruiz et al. 2023",
    year=2023,
    about="the UNet, no prior term",
    source="the DLADiff paper, section 5.1",
    full_size=AttackSettings(steps=400, lr=5e-6, batch=4, sampling_steps=25),
    tiny=AttackSettings(steps=300, lr=5e-4, batch=4, guidance=2.0),
)


def dreambooth(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Fine-tune the UNet; return `count` images of each prompt."""
    unet = copy.deepcopy(base.pipe.unet)
    customize(base, photos, settings, unet, base.pipe.text_encoder, seed, unet.parameters())
    sampler = sampling_pipeline(base, unet, base.pipe.text_encoder)
    return {prompt: sample(sampler, settings, prompt, range(count), seed) for prompt in prompts}
