"""The visibility budget of a perturbation: a penalty where a picture is seen to differ more than it may."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dladiff.core.colour_shift import ColourShift
from dladiff.core.pixels import Images
from dladiff.core.ssimulacra2 import Region, Ssimulacra2
from dladiff.core.visibility import FACE_SIDE

LONGEST = 720
"""Longer side of the compared pictures in the loop, pixels; larger ones are halved, or divided further."""
OFFSETS = ((0, 0), (5, 11), (10, 3), (15, 14), (3, 8), (8, 1), (13, 6), (6, 15))
"""Columns and rows cut away before a comparison, in turn.

SSIMULACRA2 halves pictures by means of 2 x 2 pixels, and colours are compared as means of cells. At one position alone,
a perturbation learns to cancel in these means: it scores 75, and 58 once the picture is shifted.
"""
RATE = 1.15
"""Largest factor of a weight's change in one step."""
SCORE_SPREAD, COLOUR_SPREAD = 1.0, 0.05
"""Distances from the budget, points and CIE76 units, at which a weight changes by the full factor."""
SCORE_WEIGHTS, COLOUR_WEIGHTS = (1e-3, 0.03, 2.0), (1e-2, 0.5, 30.0)
"""Lowest, first and highest weight of the squared shortfall."""
EVERY = 2
"""Steps that share one gradient of the metric."""


class Budget:
    """Penalises changed pictures whose SSIMULACRA2 is below a target or whose areas change their colour.

    The weights of both squared shortfalls grow while they are missed and shrink while they are met (dual ascent).
    """

    def __init__(
        self, original: Images, regions: Sequence[Region], target: float, colour: float, whole: bool = False
    ) -> None:
        """`original`: `1 3 h w`; `regions`: parts of it to score beside the whole, pixels.

        `whole`: it is a whole photo. A small one is scored twice, because `core.visibility` enlarges a face and a whole
        photo not: fewer scales count there, and each score alone leaves the other too low.
        """
        longest = max(original.shape[-2:])
        self.factor = max(1, -(-longest // LONGEST))
        shortest = min((min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in regions), default=FACE_SIDE)
        self.enlarged = max(1.0, min(FACE_SIDE / max(1, shortest), LONGEST / longest))
        small, plain = self._small(original), self._reduced(original)
        self.twice = whole and plain.shape != small.shape
        height, width = small.shape[-2:]
        scaled = [(0, 0, width, height), *(self._scaled(region, height, width) for region in regions)]
        self.compared = []
        for x, y in OFFSETS:
            left, top = x * (4 * x <= width // 2), y * (4 * y <= height // 2)
            own = [(max(0, a - left), max(0, b - top), c - left, d - top) for a, b, c, d in scaled]
            picture = small[..., top:, left:].contiguous()
            metric = Ssimulacra2(picture, exact=False, regions=own)
            own_scales = Ssimulacra2(plain[..., top:, left:].contiguous(), exact=False) if self.twice else None
            self.compared.append((left, top, metric, own_scales, ColourShift(picture)))
        self.target, self.colour = target, colour
        self.weights = [SCORE_WEIGHTS[1], COLOUR_WEIGHTS[1]]
        self.score = self.smoothed = target
        self.cached: Tensor | None = None

    def gradient(self, changed: Images, step: int) -> Tensor:
        """Return the gradient of the penalty at a changed picture `1 3 h w`, and adapt the weights."""
        if step % EVERY == 0 or self.cached is None:
            picture = changed.detach().requires_grad_(True)
            small = self._small(picture)
            left, top, metric, own_scales, shift = self.compared[step // EVERY % len(self.compared)]
            part = small[..., top:, left:]
            scores, moved = metric(part), shift(part)
            if own_scales is not None:
                scores = torch.cat([scores, own_scales(self._reduced(picture)[..., top:, left:])])
            short, beyond = (self.target - scores).clamp_min(0), (moved - self.colour).clamp_min(0)
            penalty = self.weights[0] * short.square().sum() + self.weights[1] * beyond.square()
            (self.cached,) = torch.autograd.grad(penalty, picture)
            self.score = float(scores.detach().min())
            self.smoothed = 0.7 * self.smoothed + 0.3 * self.score
            self._adapt(0, (self.target - self.smoothed) / SCORE_SPREAD, SCORE_WEIGHTS)
            self._adapt(1, (float(moved.detach()) - self.colour) / COLOUR_SPREAD, COLOUR_WEIGHTS)
        return self.cached

    def _adapt(self, index: int, missed: float, limits: tuple[float, float, float]) -> None:
        factor = RATE ** max(-1.0, min(1.0, missed))
        self.weights[index] = min(max(self.weights[index] * factor, limits[0]), limits[2])

    def _reduced(self, picture: Tensor) -> Tensor:
        return functional.avg_pool2d(picture, self.factor, ceil_mode=True) if self.factor > 1 else picture

    def _small(self, picture: Tensor) -> Tensor:
        """Return a picture at the size of the comparison: smaller, or enlarged as `core.visibility` enlarges a face."""
        if self.enlarged == 1:
            return self._reduced(picture)
        size = [round(side * self.enlarged) for side in picture.shape[-2:]]
        return functional.interpolate(picture, size, mode="bicubic", antialias=True).clamp(0, 1)

    def _scaled(self, region: Region, height: int, width: int) -> Region:
        x0, y0, x1, y1 = (int(v * self.enlarged) // self.factor for v in region)
        return x0, y0, max(x0 + 1, min(width, x1)), max(y0 + 1, min(height, y1))
