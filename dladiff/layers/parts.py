"""The parts of a photo whose perturbations are optimised one after the other, under the visibility budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dladiff.core.field import MAX_CELLS
from dladiff.core.pixels import Images
from dladiff.core.views import View
from dladiff.core.visibility import FACE_SIDE, Rectangle, around_face
from dladiff.faces.detect import Face, alignment_matrix
from dladiff.layers.zero_shot import Box, half_crop_pixel
from dladiff.settings.schema import MethodConfig

SMALL = 2 * FACE_SIDE
"""Longer side up to which a photo narrower than FACE_SIDE is one part, px. Its score is at another size than that of
its face, so the optimisation needs both. In a longer one the whole photo's score hardly sees one face."""

FADE = 0.12
"""Share of the perturbed side in which the perturbation fades out towards an edge inside the photo."""


@dataclass(frozen=True)
class Part:
    """A rectangle of a photo with a perturbation of its own."""

    box: Box
    inner: Box
    """Where the perturbation lies; it fades out towards edges that are not the photo's."""
    pitch: int
    """Pixels from cell to cell of the perturbation."""
    views: Sequence[View]
    """The views whose latents it pushes."""
    face: int | None
    """The face that layer 2 protects here."""
    squares: Sequence[Rectangle]
    """Where visibility is measured beside the whole part, in the photo's pixels."""


def parts_of(size: tuple[int, int], faces: Sequence[Face], views: Sequence[View], config: MethodConfig) -> list[Part]:
    """Return the parts of a photo. `size`: height and width, pixels; `views`: those of layer 1.

    In `region: face`, one around each face, for both layers. Else the whole photo for layer 1, then one around each
    face for both. Where layer 1 pushes no latents, one around each face for layer 2.
    """
    (height, width), parts = size, []
    views = views if config.pushes_latents else []
    by_name = {view.name: view for view in views}
    if views and not (config.region == "face" and faces):
        finest = min(min(view.width, view.height) for view in views) // config.resolution
        pitch = max(1, finest, math.ceil((height * width / MAX_CELLS) ** 0.5))
        squares = [around_face(face.box, height, width) for face in faces]
        everywhere = Box(0, 0, width, height)
        parts.append(Part(everywhere, everywhere, pitch, views, None, squares))
    for i, face in enumerate(faces):
        own = [by_name[name] for name in (f"face {i + 1}",) if name in by_name]
        if config.layers == "finetuning" and (parts or not own):
            continue
        parts.append(_around(size, face, own, None if config.layers == "finetuning" else i))
    return parts


def _around(size: tuple[int, int], face: Face, views: Sequence[View], index: int | None) -> Part:
    """Return the part around one face: its square, and the view of layer 1 where there is one."""
    height, width = size
    square = around_face(face.box, height, width)
    inner = Box(*square)
    for view in views:
        right, bottom = min(width, view.x + view.width), min(height, view.y + view.height)
        inner = Box(max(0, view.x), max(0, view.y), right, bottom)
    low = (min(a, b) for a, b in zip(square[:2], (inner.x0, inner.y0), strict=True))
    high = (max(a, b) for a, b in zip(square[2:], (inner.x1, inner.y1), strict=True))
    small = min(height, width) < FACE_SIDE and max(height, width) <= SMALL
    box = Box(0, 0, width, height) if small else Box(*low, *high)
    return Part(box, inner, half_crop_pixel(alignment_matrix(face.landmarks)), views, index, [square])


def fade(part: Part, shape: tuple[int, int], photo: Images) -> Tensor:
    """Return the factor of each cell `1 1 rows columns`: 1 inside, falling to 0 at edges that are not the photo's."""
    box, inner, (height, width) = part.box, part.inner, photo.shape[-2:]
    rows = _ramp(shape[0], (box.y0, box.y1), (inner.y0, inner.y1), height, photo.device)
    columns = _ramp(shape[1], (box.x0, box.x1), (inner.x0, inner.x1), width, photo.device)
    return (rows[:, None] * columns)[None, None]


def _ramp(cells: int, ends: tuple[int, int], inner: tuple[int, int], length: int, device: torch.device) -> Tensor:
    """Return the factor of each cell of one axis; `ends`, `inner`: of the canvas and of what is perturbed, pixels."""
    places = ends[0] + (torch.arange(cells, device=device) + 0.5) * (ends[1] - ends[0]) / cells
    width = FADE * (inner[1] - inner[0])
    below, above = (places - inner[0]) / width, (inner[1] - places) / width
    below = below.clamp(0, 1) if inner[0] > 0 else torch.ones_like(below)
    above = above.clamp(0, 1) if inner[1] < length else torch.ones_like(above)
    factor = torch.minimum(below, above)
    return factor.square() * (3 - 2 * factor)
