"""Embeddings of the largest face of each photo, which tell whether an identity's photos show one person."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import to_float
from dladiff.faces.cuts import FaceCut
from dladiff.faces.detect import Detector, alignment_matrix, warp
from dladiff.faces.encoder import IdentityEncoder
from dladiff.faces.packs import CLIP


def largest_faces(
    photos: Iterable[Pixels], detector: Detector, encoders: Sequence[IdentityEncoder], device: torch.device
) -> list[NDArray[np.float32]]:
    """Return a unit embedding for the largest face of each photo; photos without a face are left out.

    The cosine of two embeddings is the mean of the encoders' cosines. CLIP and SigLIP take no part: they find any two
    faces similar.
    """
    used = [encoder for encoder in encoders if encoder.cut == FaceCut() and not encoder.name.startswith(CLIP)]
    if not used:
        return []
    return [
        np.concatenate([_embedded(photo, face.landmarks, one, device) for one in used]) / np.sqrt(np.float32(len(used)))
        for photo in photos
        for face in detector.detect(photo)[:1]
    ]


def _embedded(
    photo: Pixels, landmarks: NDArray[np.float64], encoder: IdentityEncoder, device: torch.device
) -> NDArray[np.float32]:
    with torch.no_grad():
        matrix = torch.from_numpy(alignment_matrix(landmarks)[None]).to(device, torch.float32)
        found: NDArray[np.float32] = encoder(warp(to_float(photo).to(device), matrix))[0].cpu().numpy()
    return found
