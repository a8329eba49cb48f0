"""Flow matching (Lipman et al. 2023; Esser et al. 2024, section 3): straight lines from latents to noise.

At time t in (0, 1] a point is z_t = (1 - t) z + t e, and the network predicts its velocity e - z.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Times:
    """Distribution of the times of training, on the grid of the model's own schedule."""

    steps: int
    """Points of the grid; the times are 1/steps to 1 before the shift."""
    shift: float = 1.0
    """Esser et al. 2024, eq. 23: above 1, times are moved towards noise. 1: not moved."""
    logit_normal: bool = False
    """Whether the logit of the time before the shift is normally distributed (its eq. 19); else uniform."""

    def draw(self, generator: Generator) -> float:
        """Return one time."""
        if self.logit_normal:
            u = 1 / (1 + math.exp(-float(torch.randn(1, generator=generator))))
        else:
            u = float(torch.rand(1, generator=generator))
        number = min(int(u * self.steps), self.steps - 1)  # the grid begins with noise
        return shifted((self.steps - number) / self.steps, self.shift)


def shifted(time: float, shift: float) -> float:
    """Return the time after the shift: s t / (1 + (s - 1) t)."""
    return shift * time / (1 + (shift - 1) * time)


def noised(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return z_t = (1 - t) z + t e for the times `b`."""
    time = t.to(latents.dtype).view(-1, 1, 1, 1)
    return (1 - time) * latents + time * noise


def flow_loss(velocity: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """Return the mean squared error of a predicted velocity: the conditional flow-matching loss with weight 1."""
    return functional.mse_loss(velocity.float(), (noise - latents).float())
