"""Geometry (experimental): one smooth displacement of a person's face, the same in all photos, against encoders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import Images, content_digest, to_float
from dladiff.core.randomness import stream
from dladiff.faces.cuts import Cut, FaceCut
from dladiff.faces.detect import Detector, Face, Matrix, alignment_matrix, face_quad, inverse
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers.displacement import Displaced, Field, displaced, rectangle, shifts
from dladiff.layers.stop_rule import JITTER_SHARE, FaceReader
from dladiff.layers.zero_shot import jitter
from dladiff.settings.schema import ZeroShotConfig

STEPS, RATE = 150, 0.2
"""Steps of Adam, and its first rate in units of the bound; the rate falls linearly."""
BETAS = (0.9, 0.99)
"""Adam's decay rates."""
FIRST = 0.1
"""Standard deviation of the first control points, in units of the bound: at zero, cosines of 1 have no gradient."""
STRONGEST = 3.0
"""Largest length of a control point in units of the bound, before `Field.at` limits the displacement."""
FACES = 4
"""Faces in one step, all in turn."""
REACH = 0.25
"""Margin around the crop that jittered alignments can reach, relative to its side."""


Photo = tuple[Pixels, Sequence[Face]]
"""A photo and its faces, the largest first."""


@dataclass(frozen=True)
class Networks:
    """What the field is optimised against, and what finds faces."""

    encoders: Sequence[IdentityEncoder]
    """Those that read an aligned face (`of_faces`)."""
    detector: Detector
    device: torch.device


@dataclass(frozen=True)
class Portrait:
    """The part of a photo around the face that is displaced, with what encoders saw there before."""

    photo: Images
    frame: Matrix
    """From pixels of the part to the frame of the field, 2 x 3."""
    bases: Matrix
    """Alignments by the detector's passes, from pixels of the part, k x 2 x 3."""
    targets: Sequence[Tensor]
    """The clean embeddings at these alignments, `k d` for each encoder."""

    @classmethod
    def of(cls, pixels: Pixels, face: Face, networks: Networks) -> "Portrait":
        """Read one face of a photo, which is held as floats meanwhile."""
        whole = to_float(pixels).to(networks.device)
        passes = networks.detector.passes_near(pixels, [face])[0]
        reader = FaceReader(whole, face, passes, networks.encoders)
        corners = np.concatenate([face_quad(base) for base in reader.bases])
        margin = REACH * (corners.max(0) - corners.min(0)) + 2
        x0, y0, x1, y1 = rectangle(corners, margin, pixels)
        bases = np.stack([_from(base, (x0, y0)) for base in reader.bases])
        frame = _from(alignment_matrix(face.landmarks), (x0, y0))
        return cls(whole[..., y0:y1, x0:x1].clone(), frame, bases, reader.targets)

    def crops(self, field: Field, matrices: Matrix, cut: FaceCut) -> Images:
        """Return crops `k 3 s s` of the displaced photo at alignments k x 2 x 3; differentiable in the field."""
        height, width = self.photo.shape[-2:]
        pixels = torch.arange(cut.side, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), dim=-1)
        back = [torch.from_numpy(inverse(matrix)) for matrix in cut.matrices(matrices)]
        points = torch.stack([grid @ m[:, :2].T + m[:, 2] for m in back]).to(self.photo)
        moved = points + shifts(field, points, self.frame)
        size = moved.new_tensor([width, height])
        images = self.photo.expand(len(moved), -1, -1, -1)
        return functional.grid_sample(images, (2 * moved + 1) / size - 1, padding_mode="zeros", align_corners=False)


def of_faces(
    encoders: Sequence[IdentityEncoder], config: ZeroShotConfig
) -> tuple[list[IdentityEncoder], ZeroShotConfig]:
    """Return the encoders that read a face aligned to InsightFace's template, and the settings with their weights."""
    used = [i for i, e in enumerate(encoders) if isinstance(e.cut, FaceCut) and not e.cut.ffhq]
    weights = tuple(config.encoder_weights[i] for i in used) if config.encoder_weights else ()
    return [encoders[i] for i in used], config.replaced(encoder_weights=weights)


def displace(
    photos: Sequence[Photo],
    learnt: Sequence[Photo],
    networks: Networks,
    config: ZeroShotConfig,
    largest: float,
    seed: int,
) -> list[Displaced | None]:
    """Return the photos with the person's face displaced by one field; None for a photo without a face.

    `learnt`: the photos for which the field is optimised. `largest`: its bound, per cent of the distance between the
    eyes. The field depends on the seed and on the content of `learnt` alone, in any order.
    """
    learnt = sorted(learnt, key=lambda photo: content_digest(photo[0]))
    portraits = [
        Portrait.of(pixels, face, networks)
        for (pixels, _), face in zip(learnt, own_faces(learnt, learnt, networks), strict=True)
        if face is not None
    ]
    if not portraits:
        return [None] * len(photos)
    generator = stream(seed, "geometry", *(content_digest(pixels).hex() for pixels, _ in learnt))
    field = fit(portraits, networks.encoders, config, largest, generator)
    own = zip(photos, own_faces(photos, learnt, networks), strict=True)
    return [None if face is None else displaced(pixels, face, field) for (pixels, _), face in own]


def fit(
    portraits: Sequence[Portrait],
    encoders: Sequence[IdentityEncoder],
    config: ZeroShotConfig,
    largest: float,
    generator: Generator,
) -> Field:
    """Return the field that lowers the encoders' cosines to the clean faces most, over all portraits of a person.

    As in layer 2, half of the draws are at the detector's alignments and half at alignments with noise, and an encoder
    below the threshold less its margin gets no gradient. Photos are not blurred or compressed in the loop: a smooth
    displacement survives both.
    """
    field = Field.zero(largest, portraits[0].photo.device)
    start = torch.randn(field.controls.shape, generator=generator).to(field.controls)
    controls = (FIRST * start).requires_grad_(True)
    adam = torch.optim.Adam([controls], lr=RATE, betas=BETAS)
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        adam.zero_grad()
        loss = objective(Field(controls, largest), portraits, encoders, config, step, generator)
        (controls.grad,) = torch.autograd.grad(loss, controls)
        adam.step()
        with torch.no_grad():
            length = controls.norm(dim=-1, keepdim=True)
            controls *= (STRONGEST / length.clamp_min(1e-12)).clamp_max(1)
    return Field(controls.detach(), largest)


def objective(
    field: Field,
    portraits: Sequence[Portrait],
    encoders: Sequence[IdentityEncoder],
    config: ZeroShotConfig,
    step: int,
    generator: Generator,
) -> Tensor:
    """Return the mean of the cosines above their floor, over some portraits and all encoders, which `fit` lowers."""
    noise = (JITTER_SHARE * config.linear_noise, JITTER_SHARE * config.shift_noise)
    weights = config.encoder_weights or (1.0,) * len(encoders)
    count = min(FACES, len(portraits))
    cosines: list[list[Tensor]] = [[] for _ in encoders]
    for turn in range(step * count, (step + 1) * count):
        round_, number = divmod(turn, len(portraits))
        portrait = portraits[number]
        chosen = [round_ // 2 % len(portrait.bases)]
        matrices = portrait.bases[chosen]
        if round_ % 2:
            matrices = jitter(matrices, *noise, generator)
        cuts = dict.fromkeys(e.cut for e in encoders if isinstance(e.cut, FaceCut))
        crops: dict[Cut, Images] = {cut: portrait.crops(field, matrices, cut) for cut in cuts}
        for found, encoder, target in zip(cosines, encoders, portrait.targets, strict=True):
            found.append((encoder(crops[encoder.cut]) * target[chosen]).sum(1))
    low = config.threshold - config.margin
    above = [w * (torch.cat(c) - low).clamp_min(0).mean() for w, c in zip(weights, cosines, strict=True)]
    return torch.stack(above).sum()


def own_faces(photos: Sequence[Photo], learnt: Sequence[Photo], networks: Networks) -> Iterator[Face | None]:
    """Yield the person's own face in each photo, None where there is no face.

    Of several faces it is the one most similar, by the first encoder, to the mean of the largest faces of `learnt`.
    """
    embedded = [_embedded(pixels, faces[:1], networks) for pixels, faces in learnt if faces]
    for pixels, faces in photos:
        if len(faces) > 1 and embedded:
            yield faces[int((_embedded(pixels, faces, networks) @ torch.cat(embedded).mean(0)).argmax())]
        else:
            yield faces[0] if faces else None


def _embedded(pixels: Pixels, faces: Sequence[Face], networks: Networks) -> Tensor:
    """Return the unit embeddings `n d` of a photo's faces at their main alignments."""
    photo = to_float(pixels).to(networks.device)
    return torch.cat([FaceReader(photo, face, [], networks.encoders[:1]).targets[0] for face in faces])


def _from(matrix: Matrix, origin: tuple[int, int]) -> Matrix:
    """Return an alignment of a photo as one of its part with this top left (x, y)."""
    return np.concatenate([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ np.array(origin)[:, None]], axis=1)
