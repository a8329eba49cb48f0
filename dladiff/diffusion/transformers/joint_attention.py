"""Attention maps of transformers with joint attention: text and image tokens attend to each other in one softmax.

Processors of our own compute what diffusers' do and keep queries and keys, after normalisation and rotary embedding. Of
a joint layer's map, the rows of image tokens are read: their columns of text tokens are the cross map, those of image
tokens the self map.

The processors stay in the network. Gradient checkpointing runs a block again in the backward pass, and then must meet
the operations of the forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dladiff.diffusion.attention import Layer, Maps


@dataclass(frozen=True)
class Read:
    """Queries of image tokens and all keys of one layer, `b heads n d`; where its keys are of text and of image."""

    query: Tensor
    key: Tensor
    text: slice | None
    image: slice


class Recorder:
    """Keeps what the processors of one network read while a reader runs it."""

    def __init__(self) -> None:
        self.text = 0
        """Text tokens of the pass; single-stream blocks get one sequence, text first."""
        self.reads: list[Read] | None = None

    def keep(self, query: Tensor, key: Tensor, text: slice | None, image: slice) -> None:
        """Keep one layer, if a reader asks for it; `b heads n d`."""
        if self.reads is not None:
            self.reads.append(Read(query[:, :, image], key, text, image))

    def text_first(self, query: Tensor, key: Tensor) -> None:
        """Keep a layer whose sequence begins with the text's tokens."""
        length = query.shape[2]
        self.keep(query, key, slice(0, self.text), slice(self.text, length))

    def maps(self, forward: Callable[[], object]) -> Maps:
        """Return the maps of one forward pass."""
        self.reads = []
        try:
            forward()
            reads = self.reads
        finally:
            self.reads = None
        maps = Maps()
        for read in reads:
            query = read.query * read.query.shape[-1] ** -0.5
            maps.own.append(Layer(query, read.key, read.image))
            if read.text is not None:
                maps.cross.append(Layer(query, read.key, read.text))
        return maps


def heads(states: Tensor, dim: int) -> Tensor:
    """Return projected states `b n c` as `b heads n d`."""
    return states.reshape(*states.shape[:-1], -1, dim).transpose(1, 2)


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention's output `b n c` of tensors `b heads n d`."""
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def normalised(norm: Any, states: Tensor) -> Tensor:
    """Return the states after a layer's norm of queries or keys, if it has one."""
    out: Tensor = states if norm is None else norm(states)
    return out


def projected(attn: Any, hidden: Tensor, dim: int, added: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised queries and keys, and values, `b heads n d`, of the image's stream or the text's (`added`)."""
    names = ("add_q_proj", "add_k_proj", "add_v_proj") if added else ("to_q", "to_k", "to_v")
    query, key, value = (heads(getattr(attn, name)(hidden), dim) for name in names)
    norms = (attn.norm_added_q, attn.norm_added_k) if added else (attn.norm_q, attn.norm_k)
    return normalised(norms[0], query), normalised(norms[1], key), value


def joined(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> list[Tensor]:
    """Return queries, keys and values of two streams as one sequence."""
    return [torch.cat(pair, dim=2) for pair in zip(first, second, strict=True)]
