"""The latent push: how far a perturbation moves the VAE's latents of the views that fine-tuning would learn from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dladiff.core.field import ViewMap
from dladiff.core.pixels import Images
from dladiff.core.transforms import to_range
from dladiff.core.views import View
from dladiff.diffusion.surrogate import Surrogate
from dladiff.layers.zero_shot import Box, ImageGrid

SMALLEST = 1e-4
"""Added to a squared shift before its logarithm: the first steps have hardly any."""


class LatentShift:
    """How far the VAE's posterior means of views are from those of the unchanged photo, over these means' variance."""

    def __init__(
        self,
        original: Images,
        views: Sequence[View],
        grid: tuple[Box, ImageGrid],
        surrogate: Surrogate,
        sizes: tuple[int, int],
        learnt: Images | None = None,
    ) -> None:
        """`grid`: the optimised rectangle of the photo and its cells; `sizes`: side and number of views in a step.

        `learnt`: the unchanged photo, where `original` is not it.
        """
        (box, cells), (resolution, self.count) = grid, sizes
        self.surrogate, (rows, columns) = surrogate, cells.shape
        self.maps = [
            ViewMap(
                (box.y1 - box.y0, rows, view.y - box.y0, view.height),
                (box.x1 - box.x0, columns, view.x - box.x0, view.width),
                resolution,
                original.device,
            )
            for view in views
        ]
        self.clean = torch.cat([view.read(original, resolution) for view in views])
        unchanged = self.clean if learnt is None else torch.cat([view.read(learnt, resolution) for view in views])
        self.means = surrogate.encode_fixed(unchanged, self.count).mean
        centred = self.means - self.means.mean((1, 2, 3), keepdim=True)
        self.scale = centred.square().mean((1, 2, 3)).clamp_min(1e-12)

    def loss(self, delta: Tensor, step: int) -> Tensor:
        """Return minus the mean logarithm of the squared shift of some views, all of them in turn."""
        start = step * self.count % (-(-len(self.maps) // self.count) * self.count)
        part = slice(start, start + self.count)
        views = to_range(self.clean[part] + torch.cat([seen(delta) for seen in self.maps[part]]))
        with self.surrogate.autocast():
            means = self.surrogate.encode(views).mean
        shift = (means - self.means[part]).square().mean((1, 2, 3)) / self.scale[part]
        return -torch.log(shift + SMALLEST).mean()
