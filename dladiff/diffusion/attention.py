"""Cross- and self-attention of a UNet, read by processors of our own, and the loss between two sets of maps.

Source: Eq. 8 and Algorithm 1, lines 17-21. `attn2` is cross-attention, `attn1` self-attention (diffusers' names).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BLOCK = 2**18
"""Most map entries, per photo and head, that the loss holds at once: a 16x16 map is one block, a 64x64 map 64."""


@dataclass(frozen=True)
class Layer:
    """One attention layer's scaled queries `b heads n d` and keys `b heads m d`: its map, not yet multiplied out."""

    query: Tensor
    key: Tensor

    def attention_map(self) -> Tensor:
        """Return the attention map `b n m`, averaged over the heads."""
        return (self.query @ self.key.transpose(-1, -2)).softmax(-1).mean(1)


@dataclass(frozen=True)
class Maps:
    """The layers read in one forward pass, in layer order."""

    cross: list[Layer] = field(default_factory=list)
    own: list[Layer] = field(default_factory=list)


class _LastRead(Exception):  # noqa: N818 - it ends a forward pass, and is no error
    """Every layer that is read has been."""


class MapReader:
    """Reads every layer whose queries are `resolution` squared cells.

    The first pass runs the whole UNet and counts these layers; later ones, of any UNet of that layout, end at the
    last of them. What lies behind it takes no part in the maps, nor in their gradient.
    """

    def __init__(self, resolution: int) -> None:
        self.cells = resolution**2
        self.layers: int | None = None

    def __call__(self, unet: UNet2DConditionModel, forward: Callable[[], object]) -> Maps:
        """Return what the layers of `unet` hold while `forward` runs it once."""
        maps = Maps()
        before = unet.attn_processors
        unet.set_attn_processor(_Processor(self, maps))
        again = [m for m in unet.modules() if isinstance(m, Transformer2DModel) and m.gradient_checkpointing]
        for module in again:  # a layer that is computed again would find the processors of before
            module.gradient_checkpointing = False
        try:
            forward()
        except _LastRead:
            pass
        finally:
            unet.set_attn_processor(before)
            for module in again:
                module.gradient_checkpointing = True
        self.layers = len(maps.cross) + len(maps.own)
        return maps


class _Processor:
    """Fused attention that notes queries and keys where the map is read."""

    def __init__(self, reader: MapReader, maps: Maps) -> None:
        self.reader = reader
        self.maps = maps
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
        if hidden_states.dim() != 3 or hidden_states.shape[1] != self.reader.cells or attention_mask is not None:
            out: Tensor = self.fused(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return out
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(t: Tensor) -> Tensor:
            return t.view(*t.shape[:2], attn.heads, -1).transpose(1, 2)

        query, key = heads(attn.to_q(hidden_states)) * attn.scale, heads(attn.to_k(context))
        (self.maps.own if encoder_hidden_states is None else self.maps.cross).append(Layer(query, key))
        if len(self.maps.cross) + len(self.maps.own) == self.reader.layers:
            raise _LastRead
        mixed = functional.scaled_dot_product_attention(query, key, heads(attn.to_v(context)), scale=1.0)
        mixed = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
        result: Tensor = (mixed + hidden_states if attn.residual_connection else mixed) / attn.rescale_output_factor
        return result


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


def _mse(p: Layer, q: Layer, tokens: list[int] | None) -> Tensor:
    """Go through large maps in blocks of rows that the backward pass computes again: none is ever held whole."""
    rows = max(1, BLOCK // p.key.shape[2])
    if rows >= p.query.shape[2]:
        return _square_distance(p, q, tokens).mean()
    parts = [
        checkpoint(_block_sum, *block, p.key, q.key, tokens, use_reentrant=False, preserve_rng_state=False)
        for block in zip(torch.split(p.query, rows, 2), torch.split(q.query, rows, 2), strict=True)
    ]
    columns = p.key.shape[2] if tokens is None else len(tokens)
    return torch.stack(parts).sum() / (p.query.shape[0] * p.query.shape[2] * columns)


def _block_sum(p_rows: Tensor, q_rows: Tensor, p_key: Tensor, q_key: Tensor, tokens: list[int] | None) -> Tensor:
    return _square_distance(Layer(p_rows, p_key), Layer(q_rows, q_key), tokens).sum()


def _square_distance(p: Layer, q: Layer, tokens: list[int] | None) -> Tensor:
    difference = p.attention_map() - q.attention_map()
    if tokens is not None:
        difference = difference[..., tokens]
    return difference.float().square()
