"""Stop rule of layer 2: the face is re-detected in the perturbed photo, aligned and compared with the original."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from dladiff.core.arrays import Pixels
from dladiff.core.codec import PNG, Codec
from dladiff.core.pixels import Images, to_float, to_uint8
from dladiff.faces.boxes import SAME_FACE, Face, iou
from dladiff.faces.cuts import cut_of
from dladiff.faces.detect import Detector, Matrix, alignment_matrix, face_quad
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers.zero_shot import Box, jitter
from dladiff.settings.schema import ZeroShotConfig

JITTERED_ALIGNMENTS = 8
"""Jittered alignments that the stop rule checks in addition to the detector's."""
JITTER_SHARE = 0.5
"""Their noise relative to the loss's; smaller, because the detector's alignments already vary."""
SAME_ALIGNMENT = 0.5
"""Alignments whose crop corners differ by at most this, in pixels of the crop, count as one."""


class FaceReader:
    """One face of the original: its alignments by each detector pass, and its embeddings at each alignment."""

    def __init__(
        self, original: Images, face: Face, passes: Sequence[Sequence[Face]], encoders: Sequence[IdentityEncoder]
    ) -> None:
        """`original`: `1 3 h w`; `passes`: the result of `Detector.passes_near` for the face."""
        self.face, self.encoders = face, encoders
        alignments = [alignment_matrix(face.landmarks), *self._alignments(passes)]
        self.bases, base_of = _distinct([matrix for matrix in alignments if matrix is not None])
        found = iter(base_of)
        self._base_of_pass = [None if matrix is None else next(found) for matrix in alignments][1:]
        self.targets = self._embed(original, self.bases)

    def max_cosines_at(self, photo: Images, matrices: Matrix, bases: Sequence[int]) -> list[float]:
        """Return each encoder's highest cosine over k alignments (k x 2 x 3); alignment i is compared with target
        `bases[i]`.
        """
        found = self._embed(photo, matrices)
        return [float((f * t[list(bases)]).sum(1).max()) for f, t in zip(found, self.targets, strict=True)]

    def max_cosines(self, photo: Images, passes: Sequence[Sequence[Face]]) -> list[float]:
        """Return each encoder's highest cosine over the original's alignments and those of `passes`, found in `photo`.

        An alignment by a detector pass is compared with the same pass's alignment of the original, or with the main one
        where that pass did not find the face in the original.
        """
        by_pass = zip(self._alignments(passes), self._base_of_pass, strict=True)
        pairs = [(matrix, base or 0) for matrix, base in by_pass if matrix is not None]
        matrices = np.stack([*self.bases, *(matrix for matrix, _ in pairs)])
        return self.max_cosines_at(photo, matrices, [*range(len(self.bases)), *(base for _, base in pairs)])

    def _alignments(self, passes: Sequence[Sequence[Face]]) -> list[Matrix | None]:
        """Return, for each pass, the alignment of the face that overlaps this one most; None where none does."""
        best = [max(faces, key=lambda f: iou(f.box, self.face.box), default=None) for faces in passes]
        return [
            alignment_matrix(f.landmarks) if f is not None and iou(f.box, self.face.box) > SAME_FACE else None
            for f in best
        ]

    def _embed(self, photo: Images, matrices: Matrix) -> list[Tensor]:
        with torch.no_grad():
            crops = {cut: cut_of(photo, matrices, cut) for cut in dict.fromkeys(e.cut for e in self.encoders)}
            return [encoder(crops[encoder.cut]).expand(len(matrices), -1) for encoder in self.encoders]


class StopRule:
    """Stop rule: layer 2 of a face ends when no alignment of the rounded photo gives a cosine above the threshold."""

    def __init__(
        self,
        reader: FaceReader,
        detector: Detector,
        config: ZeroShotConfig,
        generator: Generator,
        codec: Codec = PNG,
    ) -> None:
        self.codec = codec
        self.reader, self.detector, self.threshold = reader, detector, config.threshold
        count = len(reader.bases)
        jittered = np.arange(JITTERED_ALIGNMENTS) % count
        self.bases = [*range(count), *(int(i) for i in jittered)]
        noise = (JITTER_SHARE * config.linear_noise, JITTER_SHARE * config.shift_noise)
        self.alignments = np.concatenate([reader.bases, jitter(reader.bases[jittered], *noise, generator)])

    def __call__(self, photo: Images) -> list[float]:
        """Return each encoder's highest cosine; the detector runs only if the fixed alignments pass the threshold."""
        pixels = self.codec.stored(to_uint8(photo))
        rounded = to_float(pixels).to(photo.device)
        fixed = self.reader.max_cosines_at(rounded, self.alignments, self.bases)
        if max(fixed) > self.threshold:
            return fixed
        redetected = self.reader.max_cosines(rounded, self.detector.passes_near(pixels, [self.reader.face])[0])
        return [max(pair) for pair in zip(fixed, redetected, strict=True)]


def similarity_rows(
    readers: Sequence[FaceReader], optimised: int, before: Pixels, after: Pixels, detector: Detector
) -> list[dict[str, Any]]:
    """Return the manifest's rows, one for each encoder: the highest cosine of any face before and after layer 2.

    The first `optimised` encoders of the readers are the optimised ones.
    """
    if not readers or not readers[0].encoders:
        return []
    columns = []
    for pixels in (before, after):
        photo = to_float(pixels).to(readers[0].targets[0].device)
        passes = detector.passes_near(pixels, [reader.face for reader in readers])
        columns.append(np.max([r.max_cosines(photo, near) for r, near in zip(readers, passes, strict=True)], axis=0))
    return [
        {"encoder": e.name, "optimised": i < optimised, "before": float(columns[0][i]), "after": float(columns[1][i])}
        for i, e in enumerate(readers[0].encoders)
    ]


def _distinct(matrices: Sequence[Matrix]) -> tuple[Matrix, list[int]]:
    """Return the matrices whose crop corners differ by more than SAME_ALIGNMENT, and for each input the index kept."""
    kept: list[Matrix] = []
    kept_index = []
    plain = face_quad(np.eye(2, 3))
    for matrix in matrices:
        moved = [np.abs(face_quad(k) @ matrix[:, :2].T + matrix[:, 2] - plain).max() for k in kept]
        near = int(np.argmin(moved)) if moved and min(moved) <= SAME_ALIGNMENT else len(kept)
        if near == len(kept):
            kept.append(matrix)
        kept_index.append(near)
    return np.stack(kept), kept_index


def still_above(optimised: Sequence[tuple[StopRule, Box, int]], photo: Images, config: ZeroShotConfig) -> list[str]:
    """Return a message for each face whose similarity is above the threshold in the final photo.

    A face that stopped below the threshold is checked again if another face's box overlaps its own, because the sum of
    their perturbations is clipped to the bound.
    """
    lines = []
    for i, (rule, box, steps) in enumerate(optimised):
        overlapped = any(box.overlaps(other) for j, (_, other, _) in enumerate(optimised) if j != i)
        if (overlapped or steps >= config.max_steps) and max(rule(photo)) > config.threshold:
            after = f"{steps} steps" + " and those of a face that overlaps it" * overlapped
            lines.append(f"face {i + 1}: similarity still above {config.threshold} after {after}")
    return lines
