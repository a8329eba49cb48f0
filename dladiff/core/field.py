"""Perturbations of layer 1 behind one interface: independent squares, or one field over a whole photo.

A field has one value for each cell of a grid over the photo. Every view of it (a crop, resized) is a linear map of the
field along rows and columns: `rows @ field @ columns.T`. So a gradient at the views becomes one at the field by the
transposed map, and overlapping views never perturb the same pixel twice.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dladiff.core.arrays import MAX_CELLS
from dladiff.core.ball import project
from dladiff.core.pixels import Images
from dladiff.core.tiles import positions
from dladiff.core.views import View


class Perturbation(Protocol):
    """What layer 1 optimises for one photo, or for several."""

    def views(self) -> Tensor:
        """Return the perturbation in every view, `n 3 r r`."""

    def ascend(self, gradient: Tensor, step_size: float) -> None:
        """Take one sign step along the gradient at the views, `n 3 r r`, and project."""

    def refresh(self) -> None:
        """Measure anew what does not follow each step; called once an epoch."""


class Squares:
    """One independent perturbation for each working square `n 3 r r`."""

    def __init__(self, x: Images, eta: float, min_psnr: float = 0.0, grey: bool = False) -> None:
        """`grey`: the perturbation's channels are equal."""
        self.x, self.eta, self.min_psnr, self.grey = x, eta, min_psnr, grey
        self.delta = torch.zeros_like(x)

    def views(self) -> Tensor:
        """Return the perturbations `n 3 r r`."""
        return self.delta

    def ascend(self, gradient: Tensor, step_size: float) -> None:
        """Take one PGD step (Madry et al. 2018) of each square."""
        gradient = _grey(gradient) if self.grey else gradient
        self.delta = project(self.delta + step_size * gradient.sign(), self.x, self.eta, self.min_psnr)

    def refresh(self) -> None:
        """Do nothing: each step is exact."""


class Field:
    """The perturbation of one whole photo `1 3 h w`, seen through `views` resized to `resolution`.

    A cell is a pixel of the photo. Where every view has fewer pixels than the photo, a cell has a pitch of several
    pixels: that of the finest view, rounded down. A field has at most MAX_CELLS cells.
    """

    def __init__(
        self,
        photo: Images,
        views: Sequence[View],
        resolution: int,
        eta: float,
        min_psnr: float = 0.0,
        grey: bool = False,
    ) -> None:
        """`grey`: the perturbation's channels are equal."""
        height, width = photo.shape[-2:]
        finest = min(min(view.width, view.height) for view in views) / resolution
        pitch = max(1.0, finest // 1, (height * width / MAX_CELLS) ** 0.5)
        shape = (max(1, round(height / pitch)), max(1, round(width / pitch)))
        self.size, self.eta, self.min_psnr, self.grey = (height, width), eta, min_psnr, grey
        small = photo if shape == self.size else functional.interpolate(photo, shape, mode="bilinear", antialias=True)
        self.photo = (small.clamp(0, 1) * 255).round().to(torch.uint8)  # bytes: many photos wait on the device
        self.cells = torch.zeros_like(small)
        self.maps = [
            ViewMap(
                (height, shape[0], view.y, view.height), (width, shape[1], view.x, view.width), resolution, photo.device
            )
            for view in views
        ]

    def views(self) -> Tensor:
        """Return the perturbation in every view, `n 3 r r`."""
        return torch.cat([seen(self.cells) for seen in self.maps])

    def ascend(self, gradient: Tensor, step_size: float) -> None:
        """Take one sign step along the sum of the views' gradients, each over its L1 mean in its part of the field.

        Over its L1 mean, a view has the same weight as any other where they overlap, whatever its size.
        """
        total = torch.zeros_like(self.cells)
        for seen, own in zip(self.maps, torch.split(gradient, 1), strict=True):
            back = seen.transposed(own)
            total[..., seen.down.cells, seen.across.cells] += back / back.abs().mean().clamp_min(1e-20)
        total = _grey(total) if self.grey else total
        self.cells = project(self.cells + step_size * total.sign(), self.photo / 255, self.eta, self.min_psnr)

    def refresh(self) -> None:
        """Do nothing: each step is exact."""

    def at_full_size(self) -> Tensor:
        """Return the perturbation in the photo's pixels, `1 3 h w`; convex combinations, so the L-inf bound holds."""
        if self.cells.shape[-2:] == self.size:
            return self.cells
        return functional.interpolate(self.cells, self.size, mode="bilinear")


class Photos:
    """The perturbations of several photos; their views follow each other in the photos' order."""

    def __init__(self, parts: Sequence[Perturbation], counts: Sequence[int]) -> None:
        """`counts`: the number of views of each part."""
        self.parts, self.counts = list(parts), list(counts)

    def views(self) -> Tensor:
        """Return the views of all photos, `n 3 r r`."""
        return torch.cat([part.views() for part in self.parts])

    def ascend(self, gradient: Tensor, step_size: float) -> None:
        """Take one step for each photo."""
        for part, own in zip(self.parts, torch.split(gradient, self.counts), strict=True):
            part.ascend(own, step_size)

    def refresh(self) -> None:
        """Refresh each photo's."""
        for part in self.parts:
            part.refresh()


class Encoded:
    """A perturbation as readers of the photo's file see it.

    What encoding changes in the views is added as a constant, measured once an epoch: a straight-through gradient
    (Bengio et al. 2013).
    """

    def __init__(self, inner: Perturbation, seen: Callable[[], Tensor]) -> None:
        """`seen`: returns the change of the views `n 3 r r` in the decoded file."""
        self.inner, self.seen = inner, seen
        self.residual = torch.zeros_like(inner.views())

    def views(self) -> Tensor:
        """Return the perturbation and what encoding adds, `n 3 r r`."""
        return self.inner.views() + self.residual

    def ascend(self, gradient: Tensor, step_size: float) -> None:
        """Take one step."""
        self.inner.ascend(gradient, step_size)

    def refresh(self) -> None:
        """Encode and decode the photo."""
        self.residual = self.seen() - self.inner.views()


def _grey(gradient: Tensor) -> Tensor:
    """Return the gradient for a perturbation with equal channels."""
    return gradient.mean(1, keepdim=True).expand_as(gradient)


Axis = tuple[int, int, int, int]
"""Pixels, cells, first pixel of a view and its number of pixels, along one axis."""


class ViewMap:
    """The linear map from a field's cells to a view's pixels: enlarge, cut, resize."""

    def __init__(self, rows: Axis, columns: Axis, resolution: int, device: torch.device) -> None:
        self.down, self.across = (_Map(*axis, resolution, device) for axis in (rows, columns))

    def __call__(self, field: Tensor) -> Tensor:
        """Return the view `1 3 r r` of a field `1 3 rows columns`."""
        return self.down(self.across(field, -1), -2)

    def transposed(self, view: Tensor) -> Tensor:
        """Return the gradient at the cells that the view uses."""
        return self.down.transposed(self.across.transposed(view, -1), -2)


class _Map:
    """The linear map from a field's cells to a view's pixels along one axis: enlarge, cut, resize."""

    def __init__(self, length: int, cells: int, start: int, count: int, resolution: int, device: torch.device) -> None:
        """Axis of `length` pixels and `cells` cells; the view has `count` pixels from `start` on."""
        identity = torch.eye(cells, device=device)[None, None]
        pixels = functional.interpolate(identity, (length, cells), mode="bilinear") if length != cells else identity
        seen = pixels[..., positions(start, count, length).to(device), :]
        whole = functional.interpolate(seen, (resolution, cells), mode="bilinear", antialias=True)[0, 0]
        used = whole.abs().sum(0).nonzero()
        self.cells = slice(int(used.min()), int(used.max()) + 1)
        self.matrix = whole[:, self.cells].contiguous()

    def __call__(self, field: Tensor, axis: int) -> Tensor:
        """Return the view along `axis` (-1 columns, -2 rows) of a field."""
        if axis == -1:
            return field[..., self.cells] @ self.matrix.T
        return self.matrix @ field[..., self.cells, :]

    def transposed(self, view: Tensor, axis: int) -> Tensor:
        """Return the gradient at the cells that the view uses."""
        return view @ self.matrix if axis == -1 else self.matrix.T @ view
