"""Textual Inversion (Gal et al. 2023): trains the embedding of one token and nothing else.

The placeholder token is `sks`, which CLIP's vocabulary contains. So all attacks share their prompts. Transformers have
other text encoders too, whose vocabularies lack it: there `sks` becomes a word of its own in each.
"""

import copy
from collections.abc import Sequence

import torch

from dladiff.core.arrays import Pixels
from dladiff.errors import ModelError
from dladiff.evaluation.attackers.base import Base, customize, sample, sampling_pipeline
from dladiff.evaluation.attackers.inversion import inverted
from dladiff.evaluation.attacks import Attack, AttackSettings

ATTACK = Attack(
    name="textual_inversion",
    function="textual_inversion",
    kind="fine-tuning",
    paper="Gal et al. 2023",
    year=2023,
    about="the embedding of `sks`, initialised from `person`",
    source="diffusers' textual_inversion: 5e-4, batch 1, accumulated and scaled to 2e-3 over 4",
    full_size=AttackSettings(steps=3000, lr=2e-3, batch=4, sampling_steps=25),
    transformer=AttackSettings(steps=3000, lr=2e-3, batch=1, sampling_steps=28, guidance=0.0),
    tiny=AttackSettings(steps=300, lr=5e-2, batch=4, guidance=2.0),
)

PLACEHOLDER = "sks"


def textual_inversion(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Train the embedding of `sks`, initialised from `settings.initializer`; return `count` images of each prompt.

    Raises ModelError: one of the two words is not a single token.
    """
    if base.transformer:
        return inverted(base, photos, settings, prompts, count, seed)
    placeholder, initializer = (_token(base, word) for word in (PLACEHOLDER, settings.initializer))
    text = copy.deepcopy(base.pipe.text_encoder)
    table = text.get_input_embeddings().weight
    with torch.no_grad():
        table[placeholder] = table[initializer]
    initial = table.detach().clone()
    others = torch.arange(len(table)) != placeholder

    def restore_others() -> None:
        with torch.no_grad():
            table[others] = initial[others]

    customize(base, photos, settings, base.pipe.unet, text, seed, [table], restore_others)
    sampler = sampling_pipeline(base, base.pipe.unet, text)
    return {prompt: sample(sampler, settings, prompt, range(count), seed) for prompt in prompts}


def _token(base: Base, word: str) -> int:
    ids = base.pipe.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ModelError(f"{word!r} is not one token of {base.name}'s vocabulary; choose a word of one token")
    return int(ids[0])
