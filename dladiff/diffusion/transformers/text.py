"""Text encoders of transformer models: loaded from the model's folder for one prompt, then freed.

Each function computes what the model's own pipeline in diffusers does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from dladiff.diffusion.text import INSTANCE
from dladiff.diffusion.transformer_layouts import CLIP, CLIP_PROJECTED, T5, TextPart
from dladiff.errors import ModelError

TOKENIZERS = {CLIP: "CLIPTokenizer", CLIP_PROJECTED: "CLIPTokenizer", T5: "T5TokenizerFast"}
"""Class of text encoder to the class of its tokenizer in transformers; Qwen's for all others."""


@dataclass(frozen=True)
class Encoded:
    """Tokens of one prompt: ids and mask `1 n`, and the position of the instance word; None if absent."""

    ids: Tensor
    mask: Tensor
    instance: int | None


@dataclass(frozen=True)
class Texts:
    """Where a model's text encoders are, and where and in which type they run."""

    root: Path
    device: torch.device
    dtype: torch.dtype

    def network(self, part: TextPart) -> Any:
        """Return a text encoder, frozen. Raises ModelError if the file lacks a tensor."""
        kind = getattr(transformers, part.kind)
        network, report = kind.from_pretrained(
            self.root, subfolder=part.folder, local_files_only=True, use_safetensors=True, output_loading_info=True,
            dtype=self.dtype,
        )  # fmt: skip
        if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise ModelError(
                f"{part.folder} in {self.root} lacks {len(lacking)} tensors of its configuration, {lacking[0]} first; "
                "fetch the model again"
            )
        return network.eval().requires_grad_(False).to(self.device)

    def tokenizer(self, part: TextPart) -> Any:
        """Return the tokenizer of a text encoder."""
        kind = getattr(transformers, TOKENIZERS.get(part.kind, "Qwen2TokenizerFast"))
        return kind.from_pretrained(self.root, subfolder=part.tokenizer, local_files_only=True)


def tokens(tokenizer: Any, text: str, length: int | None) -> Encoded:
    """Return a prompt's tokens, padded and cut to `length`; None: neither."""
    padding = {"padding": "max_length", "max_length": length, "truncation": True} if length else {}
    out = tokenizer([text], return_tensors="pt", **padding)
    place = text.find(INSTANCE)
    position = out.char_to_token(0, place) if place >= 0 else None
    return Encoded(out.input_ids, out.attention_mask, position)


def clip(texts: Texts, part: TextPart, prompt: str) -> tuple[Tensor, Tensor, int | None]:
    """Return a CLIP encoder's penultimate states `1 n d`, its pooled state `1 p`, and the instance's position.

    The pooled state is projected in the classes that have a projection.
    """
    tokenizer, network = texts.tokenizer(part), texts.network(part)
    found = tokens(tokenizer, prompt, tokenizer.model_max_length)
    out = network(found.ids.to(texts.device), output_hidden_states=True)
    pooled = out.text_embeds if part.kind == CLIP_PROJECTED else out.pooler_output
    return out.hidden_states[-2], pooled, found.instance


def t5(texts: Texts, part: TextPart, prompt: str, length: int) -> tuple[Tensor, int | None]:
    """Return T5's last states `1 n d` of a prompt padded to `length` tokens, and the instance's position."""
    found = tokens(texts.tokenizer(part), prompt, length)
    return texts.network(part)(found.ids.to(texts.device))[0], found.instance
