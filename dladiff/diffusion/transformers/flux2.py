"""FLUX.2 klein (Black Forest Labs 2025): FLUX.1's attention, one-stream blocks with attention and MLP in one layer.

Its VAE gives patches of 2 x 2 cells as channels, normalised, so a latent cell is an image token.
"""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from dladiff.diffusion.text import INSTANCE, Prompt
from dladiff.diffusion.transformer_layouts import LAYOUTS
from dladiff.diffusion.transformers import joint_attention
from dladiff.diffusion.transformers.family import Family
from dladiff.diffusion.transformers.flux import Processor, positions
from dladiff.diffusion.transformers.joint_attention import Recorder
from dladiff.diffusion.transformers.text import Texts, tokens

LENGTH = 512
"""Tokens of the prompt, as in the pipeline."""
HIDDEN = (9, 18, 27)
"""Hidden states of Qwen3 that are the text embedding, side by side, as in the pipeline."""


class SingleStreamProcessor:
    """Attention of a one-stream layer, whose projections are one with those of the MLP; keeps queries and keys."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the output of attention and MLP."""
        width = attn.inner_dim
        sizes = [width, width, width, attn.mlp_hidden_dim * attn.mlp_mult_factor]
        *streams, hidden = torch.split(attn.to_qkv_mlp_proj(hidden_states), sizes, -1)
        query, key, value = (joint_attention.heads(states, attn.head_dim) for states in streams)
        query = apply_rotary_emb(attn.norm_q(query), image_rotary_emb)
        key = apply_rotary_emb(attn.norm_k(key), image_rotary_emb)
        self.recorder.text_first(query, key)
        mixed = joint_attention.attended(query, key, value)
        out: Tensor = attn.to_out(torch.cat([mixed, attn.mlp_act_fn(hidden)], -1))
        return out


class Flux2(Family):
    """FLUX.2 klein: three hidden states of Qwen3; its training takes the posterior's mean."""

    mean_latents = True
    layers = ("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj")

    def prompt(self, texts: Texts, text: str) -> Prompt:
        """Return three hidden states of the prompt as a user's message, without thinking, side by side."""
        (part,) = LAYOUTS["flux2"].texts
        tokenizer = texts.tokenizer(part)
        message = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        found = tokens(tokenizer, message, LENGTH)
        network = texts.network(part).model  # without the words' logits
        ids, mask = found.ids.to(texts.device), found.mask.to(texts.device)
        states = network(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        return Prompt(torch.cat([states[k] for k in HIDDEN], -1), found.instance if INSTANCE in text else None)

    def velocity(self, network: Any, noisy: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Return the predicted velocity `b c h w`."""
        height, width = noisy.shape[-2:]
        length, device = prompt.embedding.shape[1], noisy.device
        words = torch.zeros(length, 4, device=device)
        words[:, 3] = torch.arange(length, device=device)
        cells = torch.nn.functional.pad(positions(height, width, device), (0, 1))
        out: Tensor = network(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=t,
            guidance=None,
            encoder_hidden_states=prompt.embedding,
            txt_ids=words,
            img_ids=cells,
            return_dict=False,
        )[0]
        return out.transpose(1, 2).reshape(noisy.shape)

    def install(self, network: Any, recorder: Recorder) -> None:
        """Put processors of our own into all attention layers."""
        for block in network.transformer_blocks:
            block.attn.set_processor(Processor(recorder))
        for block in network.single_transformer_blocks:
            block.attn.set_processor(SingleStreamProcessor(recorder))

    def low_rank_layers(self, network: Any) -> list[str]:
        """Return also the output layers of one-stream blocks; the same name in two-stream blocks is no layer."""
        count = len(network.single_transformer_blocks)
        return [*self.layers, *(f"single_transformer_blocks.{i}.attn.to_out" for i in range(count))]
