"""A smooth displacement of a face: a field in the frame of the aligned crop, and photos displaced by it.

The frame (112 x 112 px, `faces.detect.alignment_matrix`) makes one field move the same part of a face in each photo,
whatever the face's place, size and rotation there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dladiff.core import visibility
from dladiff.core.arrays import Pixels
from dladiff.faces.detect import ARCFACE_TEMPLATE, CROP, Face, Matrix, alignment_matrix, face_quad

EYES = float(np.linalg.norm(ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0]))
"""Distance between the eyes of a face seen from the front, pixels of the crop."""
PITCH = 8.0
"""Distance of control points, pixels of the crop: fields of 16 px hardly change a cosine."""
MARGIN = 2
"""Control points beyond the crop's edge on each side, so that every point of the crop has four in each direction."""
BORDER = 10.0
"""Width of the fall-off to zero at the crop's edge, pixels of the crop."""
STIFFNESS = 0.3
"""Share of the bound that is left at the centre of an eye, a brow and a corner of the mouth: people look there."""
STIFF = (
    *((x, y, 11.0, 7.0) for x, y in ARCFACE_TEMPLATE[:2]),
    *((x + side, y - 13.0, 14.0, 6.0) for (x, y), side in zip(ARCFACE_TEMPLATE[:2], (-2.0, 2.0), strict=True)),
    *((x, y, 8.0, 7.0) for x, y in ARCFACE_TEMPLATE[3:]),
)
"""Eyes, brows and corners of the mouth: x, y, and the radii at which stiffness falls to exp(-1/2), pixels of the crop.
Brows lie about 13 px above the eyes of the template."""
ROWS = 256
"""Rows of a photo displaced at a time, which limits memory."""


@dataclass(frozen=True)
class Field:
    """A displacement of points of the aligned crop: a cubic B-spline of control points, limited in length."""

    controls: Tensor
    """`n n 2`: rows, columns, (x, y), in units of the bound."""
    largest: float
    """The bound: largest displacement in per cent of the distance between the eyes."""

    @classmethod
    def zero(cls, largest: float, device: torch.device | None = None) -> "Field":
        """Return the field that moves nothing."""
        side = int(np.ceil(CROP / PITCH)) + 2 * MARGIN
        return cls(torch.zeros(side, side, 2, device=device), largest)

    def at(self, points: Tensor) -> Tensor:
        """Return the displacement of points `... 2` of the crop, in its pixels; zero outside of the crop.

        Its length is at most `largest` per cent of EYES, less near the crop's edge and at the stiff parts.
        """
        place = (points + 0.5) / PITCH + (MARGIN - 0.5)
        first = place.floor()
        columns, rows = (_spline(place[..., i] - first[..., i]) for i in (0, 1))
        index = (first.long() - 1).clamp(0, self.controls.shape[0] - 4)
        spline = points.new_zeros(points.shape)
        for row in range(4):
            for column in range(4):
                weight = rows[..., row] * columns[..., column]
                spline = spline + weight[..., None] * self.controls[index[..., 1] + row, index[..., 0] + column]
        limited = spline / (1 + spline.square().sum(-1, keepdim=True)).sqrt()
        return self.largest / 100 * EYES * allowed(points)[..., None] * limited


@dataclass(frozen=True)
class Displaced:
    """A photo with a displaced face."""

    pixels: Pixels
    box: tuple[int, int, int, int]
    """Rectangle x0, y0, x1, y1 outside of which no byte changed."""
    largest: float
    """The field's bound, per cent of the distance between the eyes."""

    def row(self) -> dict[str, Any]:
        """Return the value of the manifest's column `geometry`."""
        return {"largest": self.largest, "box": list(self.box)}

    def note(self, stored: Pixels, boxes: Iterable[visibility.FaceBox]) -> str:
        """Return a note for the manifest, whose other figures compare the stored photo with the original.

        `boxes`: the faces.
        """
        seen, of_faces = visibility.ssimulacra2_of_both(self.pixels, stored, list(boxes))
        return (
            f"geometry: the face is displaced by up to {self.largest:g} % of the distance between the eyes; beside the "
            f"displaced photo SSIMULACRA2 is {seen:.1f}, of the face {of_faces:.1f}"
        )


def displaced(pixels: Pixels, face: Face, field: Field) -> Displaced:
    """Return a photo with one face displaced.

    Output pixel p samples the photo at p + shift(p), by Lanczos over 8 x 8 pixels (positions rounded to 1/32 px).
    Pixels that are not displaced keep their bytes.
    """
    frame = alignment_matrix(face.landmarks)
    x0, y0, x1, y1 = rectangle(face_quad(frame), np.ones(2), pixels)
    most = int(np.ceil(field.largest / 100 * EYES / np.sqrt(np.linalg.det(frame[:, :2])))) + 4
    out = pixels.copy()
    columns = torch.arange(x0, x1, dtype=torch.float32)
    plain = Field(field.controls.cpu(), field.largest)
    for top in range(y0, y1, ROWS):
        rows = torch.arange(top, min(top + ROWS, y1), dtype=torch.float32)
        points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        shift = shifts(plain, points, frame)
        origin = (max(0, x0 - most), max(0, top - most))
        source = pixels[origin[1] : top + len(rows) + most, origin[0] : x1 + most]
        places = (points + shift - torch.tensor(origin)).numpy()
        sampled = cv2.remap(source, places[..., 0], places[..., 1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
        part = out[top : top + len(rows), x0:x1]
        part[:] = np.where((shift != 0).any(-1, keepdim=True).numpy(), sampled, part)
    return Displaced(out, (x0, y0, x1, y1), field.largest)


def shifts(field: Field, points: Tensor, frame: Matrix) -> Tensor:
    """Return the displacement of points `... 2` of a photo, in its pixels. `frame`: its alignment, 2 x 3."""
    matrix = torch.from_numpy(frame).to(points)
    back = torch.from_numpy(np.linalg.inv(frame[:, :2])).to(points)
    return field.at(points @ matrix[:, :2].T + matrix[:, 2]) @ back.T


def allowed(points: Tensor) -> Tensor:
    """Return the share of the bound that points `... 2` of the crop may move: 0 at its edge and beyond, 1 at most."""
    inside = (torch.minimum(points + 0.5, CROP - 0.5 - points) / BORDER).clamp(0, 1)
    inside = (inside.square() * (3 - 2 * inside)).prod(-1)
    soft = torch.ones_like(inside)
    for x, y, across, down in STIFF:
        distance = ((points[..., 0] - x) / across).square() + ((points[..., 1] - y) / down).square()
        soft = soft * (1 - torch.exp(-distance / 2))
    return inside * (STIFFNESS + (1 - STIFFNESS) * soft)


def _spline(t: Tensor) -> Tensor:
    """Return the four weights of the uniform cubic B-spline at t in [0, 1), `... 4`; they sum to 1."""
    cube, square = t**3, t**2
    first, last = (1 - t) ** 3 / 6, cube / 6
    return torch.stack([first, (3 * cube - 6 * square + 4) / 6, (-3 * cube + 3 * square + 3 * t + 1) / 6, last], -1)


def rectangle(corners: NDArray[np.float64], margin: NDArray[np.float64], pixels: Pixels) -> tuple[int, int, int, int]:
    """Return the rectangle around points of a photo, whole pixels within it."""
    height, width = pixels.shape[:2]
    low = np.clip(np.floor(corners.min(0) - margin), 0, (width - 1, height - 1)).astype(int)
    high = np.clip(np.ceil(corners.max(0) + margin), low + 1, (width, height)).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
