"""The control: random-sign noise of the same strength as a protection, in the same places."""

import numpy as np

from dladiff.core.pixels import Pixels
from dladiff.core.randomness import stream

ROUNDS = 30


def noise_like(original: Pixels, protected: Pixels, seed: int, name: str) -> Pixels:
    """Add random signs where the protected photo differs, scaled to the same mean squared error.

    Each pixel's size is rounded up or down at random, so that whole grey levels meet any error. `seed` and `name` (of
    the photo) choose signs and roundings.
    """
    clean = original.astype(np.float64)
    difference = protected.astype(np.float64) - clean
    where = np.abs(difference).max(2, keepdims=True) > 0
    draws = np.random.default_rng(stream(seed, "noise", name).initial_seed())
    signs = np.where(where, draws.choice([-1.0, 1.0], original.shape), 0.0)
    rounding = draws.random(original.shape)
    wanted = np.square(difference).mean()

    def noisy(size: float) -> Pixels:
        found: Pixels = np.clip(clean + signs * np.floor(size + rounding), 0, 255).astype(np.uint8)
        return found

    low, high = 0.0, 255.0
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        short = np.square(noisy(middle).astype(np.float64) - clean).mean() < wanted
        low, high = (middle, high) if short else (low, middle)
    return noisy(high)
