"""The vision tower of EVA02-CLIP (Sun et al. 2023, arXiv 2303.15389; Fang et al. 2023, arXiv 2303.11331).

A vision transformer with two-dimensional rotary positions (Su et al. 2021), gated feed-forward layers (SwiGLU) and
normalisation inside both parts of a block. Names of the modules are those of the published tensors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dladiff.faces.networks.state import State, numbered

HEAD = 64
"""Width of an attention head."""
TRAINED_CELLS = 16
"""Cells of a side when the rotary positions were trained (224 px); positions of more cells are scaled to it."""
EPSILON = 1e-6
BASE = 10_000.0
"""Base of the rotary frequencies."""


class Attention(nn.Module):
    """Self-attention; patches are rotated by their position, the class token is not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.inner_attn_ln, self.proj = nn.LayerNorm(width, EPSILON), nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Return `b t c` for tokens `b t c`; `angles`: radians, `t-1 HEAD`."""
        batch, tokens, width = x.shape
        parts = (self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias)
        q, k, v = (part.view(batch, tokens, width // HEAD, HEAD).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(rotated(q, angles), rotated(k, angles), v)
        out: Tensor = self.proj(self.inner_attn_ln(mixed.transpose(1, 2).reshape(batch, tokens, width)))
        return out


class FeedForward(nn.Module):
    """SwiGLU with normalisation before the last layer."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        self.ffn_ln = nn.LayerNorm(inner, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return `b t c`."""
        out: Tensor = self.w3(self.ffn_ln(functional.silu(self.w1(x)) * self.w2(x)))
        return out


class Block(nn.Module):
    """Attention and feed-forward layer, each normalised before."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPSILON), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width, EPSILON), FeedForward(width, inner)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Return `b t c`."""
        x = x + self.attn(self.norm1(x), angles)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _Patches(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class Eva02(nn.Module):
    """The tower: normalised pictures `b 3 s s` to a projected vector, and tokens before some blocks."""

    def __init__(self, state: State) -> None:
        """`state`: published tensors without their prefix `visual.`. Raises KeyError: other tensors."""
        super().__init__()
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        if width % HEAD:
            raise ValueError(f"a width of {width} is no multiple of {HEAD}")
        tokens = state["pos_embed"].shape[1]
        cells = round((tokens - 1) ** 0.5)
        self.side = cells * patch
        self.patch_embed = _Patches(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        inner = state["blocks.0.mlp.w1.weight"].shape[0]
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(numbered(state, "blocks")))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.head = nn.Linear(width, state["head.weight"].shape[0])
        self.register_buffer("angles", positions(cells), persistent=False)

    def forward(self, x: Tensor, taken: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """Return the projected class token `b d`, and the tokens `b t c` that enter the blocks in `taken`."""
        patches = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        hidden = []
        for i, block in enumerate(self.blocks):
            if i in taken:
                hidden.append(x)
            x = block(x, self.get_buffer("angles"))
        return self.head(self.norm(x)[:, 0]), hidden


def positions(cells: int) -> Tensor:
    """Return the rotary angles `cells*cells HEAD`: the row's in the first half, the column's in the second."""
    frequencies = BASE ** -(torch.arange(0, HEAD // 2, 2) / (HEAD // 2))
    along = torch.arange(cells)[:, None] * (TRAINED_CELLS / cells) * frequencies
    pairs = along.repeat_interleave(2, 1)  # both numbers of a pair turn by one angle
    rows, columns = pairs[:, None].expand(-1, cells, -1), pairs[None].expand(cells, -1, -1)
    return torch.cat([rows, columns], -1).reshape(cells * cells, HEAD)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Return `b heads t HEAD` with all tokens but the first rotated, neighbouring numbers as pairs."""
    first, rest = x[:, :, :1], x[:, :, 1:]
    turned = torch.stack([-rest[..., 1::2], rest[..., ::2]], -1).flatten(-2)
    angles = angles.to(x)
    return torch.cat([first, rest * angles.cos() + turned * angles.sin()], 2)
