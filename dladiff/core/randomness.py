"""Random streams derived from the seed and names alone, so that results do not depend on order or worker."""

import hashlib

import torch


def stream(seed: int, *names: str) -> torch.Generator:
    """Return a CPU generator seeded by the SHA-256 of seed and names: the same arguments give the same numbers."""
    text = "\x1f".join((str(seed), *names)).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1)
