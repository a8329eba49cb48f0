"""The evaluator of generated pictures: one face detector and several identity encoders.

The detector is CenterFace, which the attacker on the tiny model and layer 2 use too. Prefer encoders that neither the
protection nor the attacker uses. Of the two defaults, the tiny profile optimises against `embedded:residual`, and its
adapter is conditioned on it; `embedded:mobile` is held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import to_float
from dladiff.errors import ModelError, PhotoError
from dladiff.evaluation.verification import unit_mean
from dladiff.faces.cuts import cut_of
from dladiff.faces.detect import Detector, Face, alignment_matrix
from dladiff.faces.encoder import IdentityEncoder
from dladiff.faces.weights import missing_weights
from dladiff.service import chosen_device, named_detector, named_encoder
from dladiff.settings.adapters import expanded

Embeddings = dict[str, NDArray[np.float64]]
"""Encoder name to a unit vector."""


@dataclass(frozen=True)
class EmbeddedFaces:
    """The faces of a picture, and the embeddings of one of them."""

    faces: tuple[Face, ...]
    """All detected faces, largest first."""
    embeddings: Embeddings
    """Of the largest face that can be aligned."""


class Evaluator:
    """A face detector and identity encoders."""

    def __init__(self, detector: Detector, encoders: Sequence[IdentityEncoder]) -> None:
        self.detector, self.encoders = detector, encoders

    def embed(self, picture: Pixels) -> EmbeddedFaces | None:
        """Detect the faces of a picture and embed the largest; None if no face is found or none can be aligned."""
        faces = tuple(self.detector.detect(picture))
        for face in faces:
            try:
                matrix = alignment_matrix(face.landmarks)
            except PhotoError:
                continue
            image = to_float(picture)
            with torch.no_grad():
                crops = {cut: cut_of(image, matrix[None], cut) for cut in dict.fromkeys(e.cut for e in self.encoders)}
                embeddings = {e.name: e(crops[e.cut])[0].numpy().astype(np.float64) for e in self.encoders}
            return EmbeddedFaces(faces, embeddings)
        return None

    def mean_embedding(self, pictures: Sequence[Pixels]) -> tuple[Embeddings, int]:
        """Return the unit mean embedding of a person's pictures, and the number of pictures with a face."""
        embedded = [one for p in pictures if (one := self.embed(p)) is not None]
        if not embedded:
            return {}, 0
        return {e.name: unit_mean([one.embeddings[e.name] for one in embedded]) for e in self.encoders}, len(embedded)


def load_evaluator(encoders: Sequence[str]) -> Evaluator:
    """Load an evaluator. Raises ModelError.

    An encoder is `embedded:NAME`, an ONNX file, a pack, `clip:FOLDER`, or `adapter:NAME`: each reading of an adapter.
    """
    try:
        names = expanded(encoders)
    except ValueError as error:
        raise ModelError(f"--evaluator: {error}") from error
    if fault := missing_weights(names):
        raise ModelError(f"--evaluator: {fault}")
    loaded = [named_encoder(name) for name in names]
    if repeated := {e.name for e in loaded if sum(e.name == other.name for other in loaded) > 1}:
        raise ModelError(f"--evaluator: two encoders are named {', '.join(sorted(repeated))}; rename one of the files")
    return Evaluator(named_detector("centerface", 8, 0.5), loaded)


def use_device(threads: int, gpu: bool) -> str:
    """Set torch's number of threads; return the device, `cuda` or `cpu`. Raises ModelError: no GPU is available."""
    torch.set_num_threads(max(1, threads))
    return chosen_device(gpu).type


def cosines(embedded: EmbeddedFaces | None, reference: Embeddings) -> dict[str, float | None]:
    """Return each encoder's cosine of a face to a reference; None without a face."""
    if embedded is None:
        return dict.fromkeys(reference)
    return {name: float(embedded.embeddings[name] @ vector) for name, vector in reference.items()}


class EncoderFeatures:
    """FID features without an Inception network: a bundled encoder's output before normalisation.

    The input is the whole picture at 112 px, without detection or alignment. The tables name the network in the
    column's heading, because the distance is not comparable with Inception's FID.
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
    """Return the features of the encoder that the tiny profile holds out."""
    return EncoderFeatures(named_encoder("embedded:mobile"))
