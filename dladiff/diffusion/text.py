"""Prompt conditioning of a UNet: one CLIP text encoder (SD 1.x, 2.x), or two and a pooled vector (SDXL)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

INSTANCE = "sks"
"""The rare word that names the person in prompts (DreamBooth)."""


@dataclass(frozen=True)
class Prompt:
    """A prompt's conditioning: the text embedding and, in SDXL, the pooled embedding."""

    embedding: Tensor
    """`1 n d`, or `b n d` with one for each photo."""
    instance: int | None = None
    """Position of the instance word among the n tokens; None if absent."""
    pooled: Tensor | None = None
    """`1 p`, or `b p` with one for each photo; None in SD 1.x and 2.x."""

    def to(self, device: torch.device) -> "Prompt":
        """Return the prompt with its tensors on this device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return Prompt(self.embedding.to(device), self.instance, pooled)


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer and its text encoder."""

    tokenizer: CLIPTokenizer
    network: CLIPTextModel | CLIPTextModelWithProjection

    def tokens(self, text: str) -> Tensor:
        """Return the ids `1 n` of a prompt, padded to the model's length."""
        length = self.tokenizer.model_max_length
        out = self.tokenizer([text], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = out.input_ids.to(self.network.device)
        return ids


def embed(encoders: list[TextEncoder], text: str) -> Prompt:
    """Return a prompt's conditioning, computed like the pipelines of diffusers.

    One encoder: its last hidden state after the final norm. Two encoders: the penultimate hidden states of both,
    concatenated, and the second encoder's projected pooled state. Gradients reach encoders that require them.
    """
    ids = [encoder.tokens(text) for encoder in encoders]
    pieces = encoders[0].tokenizer.convert_ids_to_tokens(ids[0][0].tolist())
    position = next((i for i, piece in enumerate(pieces) if piece.startswith(INSTANCE)), None)
    if len(encoders) == 1:
        return Prompt(encoders[0].network(ids[0]).last_hidden_state, position)
    outs = [e.network(i, output_hidden_states=True) for e, i in zip(encoders, ids, strict=True)]
    return Prompt(torch.cat([out.hidden_states[-2] for out in outs], -1), position, outs[-1].text_embeds)
