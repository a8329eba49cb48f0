"""FLUX.1 (Black Forest Labs 2024): two-stream and one-stream blocks, rotary embedding, the text's tokens first.

FLUX.1 dev is distilled from guidance and takes its scale as an input; schnell does not.
"""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from dladiff.diffusion.text import Prompt
from dladiff.diffusion.transformer_layouts import LAYOUTS
from dladiff.diffusion.transformers import joint_attention
from dladiff.diffusion.transformers.family import Family
from dladiff.diffusion.transformers.joint_attention import Recorder
from dladiff.diffusion.transformers.packing import PATCH, packed, unpacked
from dladiff.diffusion.transformers.text import Texts, clip, t5

LENGTH = 512
"""Tokens of T5, as in the pipeline."""
GUIDANCE = 3.5
"""Scale of guidance in training, the default of diffusers' train_dreambooth_lora_flux and of the pipeline."""


class Processor:
    """Attention of one layer of FLUX.1, or of a two-stream layer of FLUX.2; keeps queries and keys."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the layer's output: of image and text in a two-stream block, of both as one in a one-stream block."""
        query, key, value = joint_attention.projected(attn, hidden_states, attn.head_dim)
        if encoder_hidden_states is not None:
            text = joint_attention.projected(attn, encoder_hidden_states, attn.head_dim, added=True)
            query, key, value = joint_attention.joined(text, (query, key, value))
        query, key = (apply_rotary_emb(states, image_rotary_emb) for states in (query, key))
        self.recorder.text_first(query, key)
        mixed = joint_attention.attended(query, key, value)
        if encoder_hidden_states is None:
            return mixed
        count = encoder_hidden_states.shape[1]
        return attn.to_out[1](attn.to_out[0](mixed[:, count:])), attn.to_add_out(mixed[:, :count])


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return the positions `(h w) 3` of image tokens: 0, row, column."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()


class Flux(Family):
    """FLUX.1: CLIP's pooled state, T5's tokens, patches of 2 x 2 cells."""

    layers = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )

    def prompt(self, texts: Texts, text: str) -> Prompt:
        """Return T5's tokens and CLIP's pooled state."""
        first, second = LAYOUTS["flux"].texts
        _, pooled, _ = clip(texts, first, text)
        embedding, instance = t5(texts, second, text, LENGTH)
        return Prompt(embedding, instance, pooled)

    def velocity(self, network: Any, noisy: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Return the predicted velocity `b c h w`."""
        height, width = noisy.shape[-2:]
        guidance = torch.full_like(t, GUIDANCE) if network.config.guidance_embeds else None
        out = network(
            hidden_states=packed(noisy),
            timestep=t,
            guidance=guidance,
            encoder_hidden_states=prompt.embedding,
            pooled_projections=prompt.pooled,
            txt_ids=torch.zeros(prompt.embedding.shape[1], 3, device=noisy.device),
            img_ids=positions(height // PATCH, width // PATCH, noisy.device),
            return_dict=False,
        )[0]
        return unpacked(out, height, width)

    def install(self, network: Any, recorder: Recorder) -> None:
        """Put processors of our own into all attention layers."""
        network.set_attn_processor(Processor(recorder))
