"""The control condition: random-sign noise with the same mean squared error as a protection, on the same pixels."""

import numpy as np

from dladiff.core.arrays import Pixels
from dladiff.core.randomness import stream

BISECTIONS = 30
"""Halvings of the interval that contains the noise amplitude."""


def noise_like(original: Pixels, protected: Pixels, seed: int, name: str) -> Pixels:
    """Return `original` (h x w x 3) plus random-sign noise on the pixels that `protected` changes.

    The amplitude is found by bisection, so that the mean squared error equals that of `protected`. Each value is
    rounded up or down at random, because whole grey levels alone could not reach every error. `seed` and `name` (of the
    photo) seed signs and roundings.
    """
    clean = original.astype(np.float64)
    difference = protected.astype(np.float64) - clean
    changed = np.abs(difference).max(2, keepdims=True) > 0
    rng = np.random.default_rng(stream(seed, "noise", name).initial_seed())
    signs = np.where(changed, rng.choice([-1.0, 1.0], original.shape), 0.0)
    rounding = rng.random(original.shape)
    target = np.square(difference).mean()

    def noisy(amplitude: float) -> Pixels:
        photo: Pixels = np.clip(clean + signs * np.floor(amplitude + rounding), 0, 255).astype(np.uint8)
        return photo

    low, high = 0.0, 255.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_small = np.square(noisy(middle).astype(np.float64) - clean).mean() < target
        low, high = (middle, high) if too_small else (low, middle)
    return noisy(high)
