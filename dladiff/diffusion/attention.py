"""Cross- and self-attention maps of a UNet, read by attention processors, and the loss between two sets of maps.

Source: Eq. 8 and Algorithm 1, lines 17-21. In diffusers `attn2` is cross-attention and `attn1` self-attention.
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
"""Map entries, per photo and head, that the loss computes at once: a 16x16 map is one block, a 64x64 map is 64."""


@dataclass(frozen=True)
class Layer:
    """One attention layer's scaled queries `b heads n d` and keys `b heads m d`."""

    query: Tensor
    key: Tensor
    columns: slice | None = None
    """The keys that the map is of, None: all; in joint attention the softmax is over those of text and image."""

    def attention_map(self) -> Tensor:
        """Return the attention map `b n m`, averaged over the heads; m counts the keys of `columns`."""
        whole = (self.query @ self.key.transpose(-1, -2)).softmax(-1).mean(1)
        return whole if self.columns is None else whole[..., self.columns]

    @property
    def width(self) -> int:
        """The number of keys that the map is of."""
        return len(range(self.key.shape[2])[self.columns or slice(None)])


@dataclass(frozen=True)
class Maps:
    """Cross- and self-attention layers read in one forward pass, in layer order."""

    cross: list[Layer] = field(default_factory=list)
    own: list[Layer] = field(default_factory=list)


class _LastRead(Exception):  # noqa: N818 - ends a forward pass early; not an error
    """Raised after the last layer to read."""


class MapReader:
    """Reads the attention layers with maps of `resolution` x `resolution` cells.

    The first pass runs the whole UNet and counts these layers. Later passes, of any UNet with the same layout, stop at
    the last of them: the layers after it affect neither the maps nor their gradient.
    """

    def __init__(self, resolution: int) -> None:
        self.cells = resolution**2
        self.layers: int | None = None

    def __call__(self, unet: UNet2DConditionModel, forward: Callable[[], object]) -> Maps:
        """Return the maps of `unet`; `forward` must run it once."""
        maps = Maps()
        before = unet.attn_processors
        unet.set_attn_processor(_Processor(self, maps))
        # A recomputed layer would run with the original processors, which are back in place during the backward pass.
        checkpointed = [m for m in unet.modules() if isinstance(m, Transformer2DModel) and m.gradient_checkpointing]
        for module in checkpointed:
            module.gradient_checkpointing = False
        try:
            forward()
        except _LastRead:
            pass
        finally:
            unet.set_attn_processor(before)
            for module in checkpointed:
                module.gradient_checkpointing = True
        self.layers = len(maps.cross) + len(maps.own)
        return maps


class _Processor:
    """Fused attention that stores the queries and keys of layers with the reader's resolution."""

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
        """Return the layer's output; `hidden_states` is `b n c` in transformer blocks."""
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


def map_distance(a: Maps, b: Maps, *, self_weight: float = 1.0) -> Tensor:
    """Return the mean squared distance of cross maps plus `self_weight` times that of self maps (Eq. 8).

    Each map contributes its mean, so that cross maps (256 x 77) and self maps (256 x 256) have equal weight, as do all
    layers. Raises ValueError without any map.
    """
    cross = [_mse(p, q) for p, q in zip(a.cross, b.cross, strict=True)]
    own = [_mse(p, q) for p, q in zip(a.own, b.own, strict=True)]
    if not cross and not own:
        raise ValueError("no attention layer has maps of attention_resolution; change that setting")
    total = torch.zeros((), device=(cross + own)[0].device)
    if cross:
        total = total + torch.stack(cross).mean()
    if own:
        total = total + self_weight * torch.stack(own).mean()
    return total


def _mse(p: Layer, q: Layer) -> Tensor:
    """Return the mean squared distance of two maps; large maps are computed, and recomputed, in blocks of rows."""
    rows = max(1, BLOCK // p.key.shape[2])
    if rows >= p.query.shape[2]:
        return _square_distance(p, q).mean()
    parts = [
        checkpoint(_block_sum, *block, p, q, use_reentrant=False, preserve_rng_state=False)
        for block in zip(torch.split(p.query, rows, 2), torch.split(q.query, rows, 2), strict=True)
    ]
    return torch.stack(parts).sum() / (p.query.shape[0] * p.query.shape[2] * p.width)


def _block_sum(p_rows: Tensor, q_rows: Tensor, p: Layer, q: Layer) -> Tensor:
    return _square_distance(Layer(p_rows, p.key, p.columns), Layer(q_rows, q.key, q.columns)).sum()


def _square_distance(p: Layer, q: Layer) -> Tensor:
    return (p.attention_map() - q.attention_map()).float().square()
