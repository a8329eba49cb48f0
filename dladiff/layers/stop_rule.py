"""One face of one photo as an attacker reads it: found anew at several sizes, aligned, compared with the original."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from dladiff.core.pixels import Images, Pixels, to_float, to_uint8
from dladiff.faces.detect import SAME_FACE, Detector, Face, Matrix, alignment_matrix, face_quad, iou, warp
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers.zero_shot import enlarged, jitter
from dladiff.settings.schema import ZeroShotConfig

VIEWS = 8
"""Jittered alignments that the stop rule reads beside those that the detector gives."""
VIEW_NOISE = 0.5
"""Their noise as a share of the loss's: what the alignments already cover is not asked for twice."""
SAME_ALIGNMENT = 0.5
"""Largest move of the crop's corners, in pixels of the crop, of two alignments that count as one."""


class FaceReader:
    """One face: the alignments that the detector's sizes give it in the original, and its embeddings through them."""

    def __init__(
        self, original: Images, face: Face, readings: Sequence[Sequence[Face]], encoders: Sequence[IdentityEncoder]
    ) -> None:
        """`original` is `1 3 h w`; `readings` are what `Detector.readings` finds in it."""
        self.face, self.encoders = face, encoders
        looks = [alignment_matrix(face.landmarks), *self._alignments(readings)]
        self.bases, self._base_of = _distinct([look for look in looks if look is not None])
        found = iter(self._base_of)
        self._base_of_look = [None if look is None else next(found) for look in looks][1:]
        self.targets = self._embed(original, self.bases)

    def through(self, photo: Images, matrices: Matrix, own: Sequence[int]) -> list[float]:
        """Return each encoder's highest cosine over these alignments (k x 2 x 3), each against its `own` target."""
        found = self._embed(photo, matrices)
        return [float((f * t[list(own)]).sum(1).max()) for f, t in zip(found, self.targets, strict=True)]

    def read(self, photo: Images, readings: Sequence[Sequence[Face]]) -> list[float]:
        """Return each encoder's highest cosine over the original alignments and those of `readings`, found in photo.

        Photo and original are read in the same way, as an outsider does: a reading is compared with the same look at
        the original, and with the main one where that look did not find the face there.
        """
        looks = zip(self._alignments(readings), self._base_of_look, strict=True)
        pairs = [(look, base or 0) for look, base in looks if look is not None]
        matrices = np.stack([*self.bases, *(look for look, _ in pairs)])
        return self.through(photo, matrices, [*range(len(self.bases)), *(base for _, base in pairs)])

    def _alignments(self, readings: Sequence[Sequence[Face]]) -> list[Matrix | None]:
        """Align the face of each reading that overlaps this one most; None for a reading without it."""
        best = [max(faces, key=lambda f: iou(f.box, self.face.box), default=None) for faces in readings]
        return [
            alignment_matrix(f.landmarks) if f is not None and iou(f.box, self.face.box) > SAME_FACE else None
            for f in best
        ]

    def _embed(self, photo: Images, matrices: Matrix) -> list[Tensor]:
        with torch.no_grad():
            crops = {side: _crops(photo, matrices, side) for side in {encoder.crop for encoder in self.encoders}}
            return [encoder(crops[encoder.crop]) for encoder in self.encoders]


class StopRule:
    """What ends layer 2 on one face: no reading of the rounded photo above `ths` in any optimised encoder."""

    def __init__(self, reader: FaceReader, detector: Detector, config: ZeroShotConfig, generator: Generator) -> None:
        self.reader, self.detector, self.ths = reader, detector, config.ths
        count = len(reader.bases)
        turn = np.arange(VIEWS) % count
        self.own = [*range(count), *(int(i) for i in turn)]
        noise = (VIEW_NOISE * config.linear_noise, VIEW_NOISE * config.shift_noise)
        self.views = np.concatenate([reader.bases, jitter(reader.bases[turn], *noise, generator)])

    def __call__(self, photo: Images) -> list[float]:
        """Return the highest cosine of each encoder; the detector only looks where the fixed alignments all pass."""
        pixels = to_uint8(photo)
        rounded = to_float(pixels).to(photo.device)
        found = self.reader.through(rounded, self.views, self.own)
        if max(found) > self.ths:
            return found
        again = self.reader.read(rounded, self.detector.readings(pixels))
        return [max(pair) for pair in zip(found, again, strict=True)]


def similarity_rows(
    readers: Sequence[FaceReader], optimised: int, before: Pixels, after: Pixels, detector: Detector
) -> list[dict[str, Any]]:
    """Return the manifest's rows, one an encoder: the worst reading of any face before and after layer 2.

    The first `optimised` encoders of the readers took part in the optimisation.
    """
    if not readers or not readers[0].encoders:
        return []
    columns = []
    for pixels in (before, after):
        photo, readings = to_float(pixels).to(readers[0].targets[0].device), detector.readings(pixels)
        columns.append(np.max([reader.read(photo, readings) for reader in readers], axis=0))
    return [
        {"encoder": e.name, "optimised": i < optimised, "before": float(columns[0][i]), "after": float(columns[1][i])}
        for i, e in enumerate(readers[0].encoders)
    ]


def _crops(photo: Images, matrices: Matrix, side: int) -> Images:
    return warp(photo.expand(len(matrices), -1, -1, -1), torch.from_numpy(enlarged(matrices, side)).to(photo), side)


def _distinct(matrices: Sequence[Matrix]) -> tuple[Matrix, list[int]]:
    """Leave out what moves the crop's corners by less than SAME_ALIGNMENT from a matrix already kept.

    Returns the matrices kept, and for each one given the number of the one kept in its place.
    """
    kept: list[Matrix] = []
    place = []
    plain = face_quad(np.eye(2, 3))
    for matrix in matrices:
        moved = [np.abs(face_quad(k) @ matrix[:, :2].T + matrix[:, 2] - plain).max() for k in kept]
        near = int(np.argmin(moved)) if moved and min(moved) <= SAME_ALIGNMENT else len(kept)
        if near == len(kept):
            kept.append(matrix)
        place.append(near)
    return np.stack(kept), place
