"""The latent push: how far a perturbation moves the latents of the views that fine-tuning would learn from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dladiff.core.field import ViewMap
from dladiff.core.pixels import Images
from dladiff.core.transforms import to_range
from dladiff.core.views import View
from dladiff.diffusion.vae import Latents, WeightedVae
from dladiff.layers.zero_shot import Box, ImageGrid

SMALLEST = 1e-4
"""Added to a squared shift before its logarithm: the first steps have hardly any."""


class LatentShift:
    """How far the posteriors of views, in one or several VAEs, are from those of the unchanged photo.

    A shift is the mean square of the difference, relative to the variance of the clean view's own latents.
    """

    def __init__(
        self,
        original: Images,
        views: Sequence[View],
        grid: tuple[Box, ImageGrid],
        vaes: Sequence[WeightedVae],
        sizes: tuple[int, int],
        log_variance: float = 0.0,
        learnt: Images | None = None,
    ) -> None:
        """`grid`: the optimised rectangle of the photo and its cells; `sizes`: side and number of views in a step.

        `log_variance`: weight of the shift of the posterior's log variance beside that of its mean. `learnt`: the
        unchanged photo, where `original` is not it.
        """
        (box, cells), (resolution, self.count) = grid, sizes
        self.vaes, (rows, columns) = vaes, cells.shape
        self.maps = [
            ViewMap(
                (box.y1 - box.y0, rows, view.y - box.y0, view.height),
                (box.x1 - box.x0, columns, view.x - box.x0, view.width),
                resolution,
                original.device,
            )
            for view in views
        ]
        self.log_variance = log_variance
        self.clean = torch.cat([view.read(original, resolution) for view in views])
        unchanged = self.clean if learnt is None else torch.cat([view.read(learnt, resolution) for view in views])
        self.posteriors = [weighted.vae.encode_fixed(unchanged, self.count) for weighted in vaes]
        self.scales = [(_variance(p.mean), _variance(p.log_variance)) for p in self.posteriors]

    def loss(self, delta: Tensor, step: int) -> Tensor:
        """Return minus the mean logarithm of the squared shift of some views, all of them in turn."""
        start = step * self.count % (-(-len(self.maps) // self.count) * self.count)
        part = slice(start, start + self.count)
        views = to_range(self.clean[part] + torch.cat([seen(delta) for seen in self.maps[part]]))
        if len(self.vaes) == 1:
            return self._loss(views, 0, part)
        value, gradient = views.new_zeros(()), torch.zeros_like(views)
        for number in range(len(self.vaes)):  # one after the other: the memory of one VAE's activations
            point = views.detach().requires_grad_(True)
            loss = self._loss(point, number, part)
            gradient += torch.autograd.grad(loss, point)[0]
            value += loss.detach()
        return value + ((views - views.detach()) * gradient).sum()

    def _loss(self, views: Images, number: int, part: slice) -> Tensor:
        """Return a VAE's share of the loss of the views of `part`."""
        weighted = self.vaes[number]
        shift = self.shift(weighted.vae.encode(views), number, part)
        return -weighted.weight * torch.log(shift + SMALLEST).mean()

    def shift(self, latents: Latents, number: int, part: slice) -> Tensor:
        """Return the squared shift of each view of `part` in a VAE, relative to its latents' variance."""
        clean, (scale, spread) = self.posteriors[number], self.scales[number]
        shift = (latents.mean - clean.mean[part]).square().mean((1, 2, 3)) / scale[part]
        if self.log_variance and latents.log_variance is not None and clean.log_variance is not None:
            moved = (latents.log_variance - clean.log_variance[part]).square().mean((1, 2, 3)) / spread[part]
            shift = shift + self.log_variance * moved
        return shift


def _variance(latents: Tensor | None) -> Tensor:
    if latents is None:
        return torch.ones(())
    centred = latents - latents.mean((1, 2, 3), keepdim=True)
    return centred.square().mean((1, 2, 3)).clamp_min(1e-12)
