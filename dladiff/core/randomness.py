"""One random stream per purpose, derived from the seed and names alone: order and worker never matter."""

import hashlib

import torch


def stream(seed: int, *names: str) -> torch.Generator:
    """CPU generator for these names: the same names give the same numbers wherever they are drawn."""
    text = "\x1f".join((str(seed), *names)).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1)
