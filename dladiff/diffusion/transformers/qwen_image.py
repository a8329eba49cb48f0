"""Qwen-Image (Qwen 2025): two-stream blocks, a rotary embedding for each stream, the text's tokens first."""

from typing import Any

from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor

from dladiff.diffusion.text import INSTANCE, Prompt
from dladiff.diffusion.transformer_layouts import LAYOUTS
from dladiff.diffusion.transformers import joint_attention
from dladiff.diffusion.transformers.family import Family
from dladiff.diffusion.transformers.joint_attention import Recorder
from dladiff.diffusion.transformers.packing import PATCH, packed, unpacked
from dladiff.diffusion.transformers.text import Texts, tokens

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""The message that Qwen-Image was trained with; its pipeline has the same."""
PREFIX = 34
"""Tokens of the template before the prompt, which are left out of the embedding."""


class Processor:
    """Attention of one layer; keeps queries and keys."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output of the image's tokens and of the text's. One prompt needs no mask."""
        dim, count = attn.inner_dim // attn.heads, encoder_hidden_states.shape[1]
        streams = []
        turns = image_rotary_emb or (None, None)
        for states, added, turn in ((encoder_hidden_states, True, turns[1]), (hidden_states, False, turns[0])):
            query, key, value = joint_attention.projected(attn, states, dim, added)
            streams.append((_turned(query, turn), _turned(key, turn), value))
        query, key, value = joint_attention.joined(*streams)
        self.recorder.text_first(query, key)
        mixed = joint_attention.attended(query, key, value)
        return attn.to_out[1](attn.to_out[0](mixed[:, count:])), attn.to_add_out(mixed[:, :count])


def _turned(states: Tensor, turn: Tensor | None) -> Tensor:
    """Return `b heads n d` after the rotary embedding, which diffusers takes as `b n heads d`."""
    if turn is None:
        return states
    out: Tensor = apply_rotary_emb_qwen(states.transpose(1, 2), turn, use_real=False).transpose(1, 2)
    return out


class QwenImage(Family):
    """Qwen-Image: the last states of Qwen2.5-VL's language model, patches of 2 x 2 cells, one frame."""

    layers = ("to_q", "to_k", "to_v", "to_out.0")

    def prompt(self, texts: Texts, text: str) -> Prompt:
        """Return the last hidden states of the prompt in its template, without the template's beginning."""
        (part,) = LAYOUTS["qwen"].texts
        found = tokens(texts.tokenizer(part), TEMPLATE.format(text), None)
        network = texts.network(part).model  # without the words' logits
        ids, mask = found.ids.to(texts.device), found.mask.to(texts.device)
        states = network(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        position = found.instance - PREFIX if found.instance is not None and INSTANCE in text else None
        return Prompt(states[-1][:, PREFIX:], position)

    def velocity(self, network: Any, noisy: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Return the predicted velocity `b c h w`."""
        height, width = noisy.shape[-2:]
        out = network(
            hidden_states=packed(noisy),
            timestep=t,
            guidance=None,
            encoder_hidden_states=prompt.embedding,
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(noisy),
            return_dict=False,
        )[0]
        return unpacked(out, height, width)

    def install(self, network: Any, recorder: Recorder) -> None:
        """Put processors of our own into all attention layers."""
        network.set_attn_processor(Processor(recorder))
