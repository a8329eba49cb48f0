"""Textual Inversion (Gal et al. 2023): one word's embedding is learnt, everything else stays.

The placeholder is `sks` itself, a token of its own in CLIP's vocabulary, so that all attacks share their prompts.
"""

from collections.abc import Sequence

import torch

from dladiff.core.pixels import Pixels
from dladiff.errors import ModelError
from dladiff.evaluation.attackers.base import Base, copied, customize, sample, with_parts
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
    tiny=AttackSettings(steps=300, lr=5e-2, batch=4, guidance=2.0),
)

PLACEHOLDER = "sks"


def textual_inversion(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Learn the embedding of `sks`, from that of `settings.initializer`. Raises ModelError: not one token."""
    place, start = (_token(base, word) for word in (PLACEHOLDER, settings.initializer))
    text = copied(base.pipe.text_encoder)
    table = text.get_input_embeddings().weight
    with torch.no_grad():
        table[place] = table[start]
    fixed = table.detach().clone()
    others = torch.arange(len(table)) != place

    def keep_the_rest() -> None:
        with torch.no_grad():
            table[others] = fixed[others]

    customize(base, photos, settings, base.pipe.unet, text, seed, [table], keep_the_rest)
    sampler = with_parts(base, base.pipe.unet, text)
    return {prompt: sample(sampler, settings, prompt, range(count), seed) for prompt in prompts}


def _token(base: Base, word: str) -> int:
    ids = base.pipe.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ModelError(f"{word!r} is not one token of {base.name}'s vocabulary; Textual Inversion needs one that is")
    return int(ids[0])
