"""Cross- and self-attention maps of a UNet, read by processors of our own, and the loss between two sets of maps.

Source: Eq. 8 and Algorithm 1, lines 17-21. `attn2` is cross-attention, `attn1` self-attention (diffusers' names).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor


@dataclass
class Maps:
    """Attention maps of one forward pass, in layer order: `b h*w tokens` (cross) and `b h*w h*w` (own)."""

    cross: list[Tensor] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)


class ReadingProcessor:
    """Attention with the map computed explicitly where it is to be read, and fused attention elsewhere."""

    def __init__(self, maps: Maps, cells: int) -> None:
        self.maps = maps
        self.cells = cells
        self.fused = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Run the layer; `hidden_states` is `b n c`, as transformer blocks hand it over."""
        if hidden_states.dim() != 3 or hidden_states.shape[1] != self.cells or attention_mask is not None:
            out: Tensor = self.fused(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return out
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(t) for t in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        weights = (query @ key.transpose(1, 2) * attn.scale).softmax(-1)
        heads_averaged = weights.unflatten(0, (hidden_states.shape[0], attn.heads)).mean(1)
        (self.maps.own if encoder_hidden_states is None else self.maps.cross).append(heads_averaged)
        mixed = attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(weights @ value)))
        result: Tensor = (mixed + hidden_states if attn.residual_connection else mixed) / attn.rescale_output_factor
        return result


@contextmanager
def reading(unet: UNet2DConditionModel, resolution: int) -> Iterator[Maps]:
    """Collect the maps of every layer whose queries are `resolution` squared cells, for one forward pass."""
    maps = Maps()
    before = unet.attn_processors
    unet.set_attn_processor(ReadingProcessor(maps, resolution**2))
    try:
        yield maps
    finally:
        unet.set_attn_processor(before)


def map_distance(a: Maps, b: Maps, *, self_weight: float = 1.0, tokens: list[int] | None = None) -> Tensor:
    """Mean squared distance of cross maps plus `self_weight` times that of self maps (Eq. 8).

    The mean over each map lets cross (256 x 77) and self (256 x 256) weigh alike; layers count equally.
    `tokens` restricts the cross maps to these positions of the prompt.
    """
    cross = [_mse(p, q, tokens) for p, q in zip(a.cross, b.cross, strict=True)]
    own = [_mse(p, q, None) for p, q in zip(a.own, b.own, strict=True)]
    if not cross and not own:
        raise ValueError("no attention layer has maps of attention_resolution; change that setting")
    total = torch.zeros((), device=(cross + own)[0].device)
    if cross:
        total = total + torch.stack(cross).mean()
    if own:
        total = total + self_weight * torch.stack(own).mean()
    return total


def _mse(p: Tensor, q: Tensor, tokens: list[int] | None) -> Tensor:
    if tokens is not None:
        p, q = p[..., tokens], q[..., tokens]
    return (p - q).float().square().mean()
