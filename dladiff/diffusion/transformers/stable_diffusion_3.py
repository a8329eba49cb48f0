"""Stable Diffusion 3.5 (Esser et al. 2024): joint attention without rotary embedding, the image's tokens first.

Some blocks of SD 3.5 medium have a second attention layer, of the image's tokens alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dladiff.diffusion.text import Prompt
from dladiff.diffusion.transformer_layouts import LAYOUTS
from dladiff.diffusion.transformers import joint_attention
from dladiff.diffusion.transformers.family import Family
from dladiff.diffusion.transformers.joint_attention import Recorder
from dladiff.diffusion.transformers.text import Texts, clip, t5

LENGTH = 256
"""Tokens of T5, as in the pipeline."""
TRAINING_STEPS = 1000
"""The network takes its time times this."""


class Processor:
    """Attention of one layer; keeps queries and keys."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the layer's output of the image's tokens, and of the text's if it has them."""
        dim = attn.inner_dim // attn.heads
        image, count = joint_attention.projected(attn, hidden_states, dim), hidden_states.shape[1]
        if encoder_hidden_states is None:
            query, key, value = image
            self.recorder.keep(query, key, None, slice(0, count))
            return self._out(attn, joint_attention.attended(query, key, value))
        text = joint_attention.projected(attn, encoder_hidden_states, dim, added=True)
        query, key, value = joint_attention.joined(image, text)
        self.recorder.keep(query, key, slice(count, query.shape[2]), slice(0, count))
        mixed = joint_attention.attended(query, key, value)
        rest: Tensor = mixed[:, count:]
        return self._out(attn, mixed[:, :count]), rest if attn.context_pre_only else attn.to_add_out(rest)

    def _out(self, attn: Any, mixed: Tensor) -> Tensor:
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out


class StableDiffusion3(Family):
    """SD 3.5: two CLIP encoders side by side, T5 after them, times shifted by 3."""

    logit_normal = True
    layers = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )

    def prompt(self, texts: Texts, text: str) -> Prompt:
        """Return CLIP's 77 tokens, padded with zeros to T5's width, and T5's; the pooled states side by side."""
        first, second, third = LAYOUTS["sd3"].texts
        small, small_pooled, instance = clip(texts, first, text)
        large, large_pooled, _ = clip(texts, second, text)
        long, _ = t5(texts, third, text, LENGTH)
        both = torch.cat([small, large], -1)
        both = functional.pad(both, (0, long.shape[-1] - both.shape[-1]))
        return Prompt(torch.cat([both, long], 1), instance, torch.cat([small_pooled, large_pooled], -1))

    def velocity(self, network: Any, noisy: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Return the predicted velocity `b c h w`."""
        out: Tensor = network(
            hidden_states=noisy,
            timestep=t * TRAINING_STEPS,
            encoder_hidden_states=prompt.embedding,
            pooled_projections=prompt.pooled,
            return_dict=False,
        )[0]
        return out

    def install(self, network: Any, recorder: Recorder) -> None:
        """Put processors of our own into all attention layers."""
        network.set_attn_processor(Processor(recorder))
