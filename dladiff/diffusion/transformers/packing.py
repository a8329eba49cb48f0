"""Latents as a sequence of tokens: patches of 2 x 2 cells, row by row."""

from torch import Tensor

PATCH = 2
"""Side of a patch, latent cells."""


def packed(latents: Tensor) -> Tensor:
    """Return tokens `b (h/2 w/2) 4c` of latents `b c h w`; a token holds each channel's four cells in turn."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // PATCH) * (width // PATCH), channels * PATCH**2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return latents `b c h w` of the tokens that `packed` gives."""
    batch, _, channels = tokens.shape
    patches = tokens.view(batch, height // PATCH, width // PATCH, channels // PATCH**2, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // PATCH**2, height, width)
