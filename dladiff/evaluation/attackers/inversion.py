"""Textual Inversion (Gal et al. 2023) on transformers: one trained vector for `sks` in each of their text encoders."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dladiff.core.arrays import Pixels
from dladiff.evaluation.attackers import flow
from dladiff.evaluation.attackers.base import Base
from dladiff.evaluation.attacks import AttackSettings

PLACEHOLDER = "sks"


def inverted(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Train the vectors, each initialised from the mean of `settings.initializer`; return `count` images a prompt.

    The text encoders get the vectors by hooks, which are removed afterwards: their weights never change.
    """
    pipe, components = copy.copy(base.pipe), base.pipe.components
    words: list[Word] = []
    for name in [name for name in components if name.startswith("tokenizer")]:
        tokenizer, encoder = copy.deepcopy(components[name]), components[name.replace("tokenizer", "text_encoder")]
        words.append(Word(tokenizer, encoder, settings.initializer))
        setattr(pipe, name, tokenizer)
    vectors = [word.vector for word in words]
    try:
        flow.train(base, pipe, photos, settings, seed, vectors, trains_text=True)
        return {prompt: flow.pictures(base, pipe, settings, prompt, count, seed) for prompt in prompts}
    finally:
        for word in words:
            word.remove()


class Word:
    """The placeholder in one text encoder: its id, and the vector that hooks put in its place."""

    def __init__(self, tokenizer: Any, encoder: nn.Module, initializer: str) -> None:
        """Add the placeholder to the tokenizer, unless it is one of its words, and install the hooks.

        CLIP's vocabulary has it; a word after CLIP's last one would be taken for the end of the text.
        """
        table = encoder.get_input_embeddings().weight  # type: ignore[operator]
        pieces = tokenizer(initializer, add_special_tokens=False).input_ids
        self.vector: Tensor = table[pieces].mean(0).detach().float().clone()
        found = tokenizer(PLACEHOLDER, add_special_tokens=False).input_ids
        if len(found) != 1:
            tokenizer.add_tokens([PLACEHOLDER])
            found = [tokenizer.convert_tokens_to_ids(PLACEHOLDER)]
        self.place, self.mask = int(found[0]), torch.zeros(0)
        self.handles: list[Any] = []
        for module in encoder.modules():  # T5 has a table in its encoder beside the shared one
            if isinstance(module, nn.Embedding) and module.weight.shape == table.shape:
                self.handles.append(module.register_forward_pre_hook(self._before))
                self.handles.append(module.register_forward_hook(self._after))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def _before(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.mask = given[0] == self.place
        return (given[0].masked_fill(self.mask, 0), *given[1:])  # its id may be after the table's last

    def _after(self, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return torch.where(self.mask[..., None], self.vector.to(out.dtype), out)
