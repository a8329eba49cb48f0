"""The judge of generated pictures: one detector and several identity encoders.

The detector is CenterFace, which crops for the thief on the tiny model and for layer 2 too. The best encoders are those
that neither the protection nor the thief used: `embedded:residual`, one of the defaults, is what the tiny profile
optimises against and what its adapter listens to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dladiff.core.pixels import Pixels, to_float
from dladiff.errors import ModelError, PhotoError
from dladiff.faces.detect import Detector, Face, alignment_matrix, warp
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers.zero_shot import enlarged
from dladiff.service import named_detector, named_encoder

Embeddings = dict[str, NDArray[np.float64]]
"""Encoder name to a unit vector."""


@dataclass(frozen=True)
class Reading:
    """The faces of a picture, largest first, and the embeddings of the largest that can be aligned."""

    faces: tuple[Face, ...]
    embeddings: Embeddings


class Judge:
    """A detector and encoders that read pictures."""

    def __init__(self, detector: Detector, encoders: Sequence[IdentityEncoder]) -> None:
        self.detector, self.encoders = detector, encoders

    def read(self, picture: Pixels) -> Reading | None:
        """Read the largest face; None where the detector finds none."""
        faces = tuple(self.detector.detect(picture))
        for face in faces:
            try:
                matrix = alignment_matrix(face.landmarks)
            except PhotoError:
                continue
            image = to_float(picture)
            with torch.no_grad():
                crops = {
                    side: warp(image, torch.from_numpy(enlarged(matrix, side)).to(image)[None], side)
                    for side in {e.crop for e in self.encoders}
                }
                found = {e.name: e(crops[e.crop])[0].numpy().astype(np.float64) for e in self.encoders}
            return Reading(faces, found)
        return None

    def mean(self, pictures: Sequence[Pixels]) -> tuple[Embeddings, int]:
        """Return the unit mean embedding of a person's pictures, and how many of them hold a face."""
        readings = [reading for p in pictures if (reading := self.read(p)) is not None]
        return {e.name: unit_mean([r.embeddings[e.name] for r in readings]) for e in self.encoders if readings}, len(
            readings
        )


def load_judge(encoders: Sequence[str]) -> Judge:
    """Load a judge: encoders as `embedded:NAME`, an ONNX file, a pack or `clip:FOLDER`. Raises ModelError."""
    found = [named_encoder(name) for name in encoders]
    if twice := {e.name for e in found if sum(e.name == other.name for other in found) > 1}:
        raise ModelError(
            f"--judge: two encoders are named {', '.join(sorted(twice))}; rename a file, so that both show"
        )
    return Judge(named_detector("centerface", 8, 0.5), found)


def unit_mean(vectors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean of unit vectors, brought to unit length."""
    mean = np.mean(vectors, axis=0)
    unit: NDArray[np.float64] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return unit


def cosines(reading: Reading | None, reference: Embeddings) -> dict[str, float | None]:
    """Cosine of a reading to a reference, encoder by encoder; None without a face."""
    if reading is None:
        return dict.fromkeys(reference)
    return {name: float(reading.embeddings[name] @ vector) for name, vector in reference.items()}


class EncoderFeatures:
    """FID features where no Inception network is given: a bundled encoder's output, before it is made unit length.

    It sees the whole picture at 112 px, aligned or not, face or not. The distance it gives is no Inception FID and is
    never named so.
    """

    def __init__(self, encoder: IdentityEncoder) -> None:
        self.encoder, self.name, self.sha256 = encoder, encoder.name, encoder.sha256

    def __call__(self, picture: Pixels) -> NDArray[np.float64]:
        """Return the features `d` of one picture."""
        image = torch.nn.functional.interpolate(to_float(picture), (112, 112), mode="bilinear", antialias=True)
        with torch.no_grad():
            features: NDArray[np.float64] = self.encoder.network(self.encoder.scaled(image)).flatten().double().numpy()
        return features


def embedded_features() -> EncoderFeatures:
    """Features of the encoder that the tiny profile holds out."""
    return EncoderFeatures(named_encoder("embedded:mobile"))
