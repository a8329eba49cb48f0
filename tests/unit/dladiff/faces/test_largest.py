"""Embeddings of the largest face of each photo."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from dladiff.faces.detect import ARCFACE_TEMPLATE, Face
from dladiff.faces.encoder import IdentityEncoder
from dladiff.faces.largest import largest_faces


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def encoder(name: str) -> IdentityEncoder:
    return IdentityEncoder(Mean(), name, "0", "none", mean=0.0, std=255.0)


class Template:
    """Finds a face at the template's place in photos that are not black, then a smaller one elsewhere."""

    def detect(self, rgb: Any) -> list[Face]:
        if not rgb.any():
            return []
        box = (0.0, 0.0, 112.0, 112.0)
        return [Face(box=box, landmarks=ARCFACE_TEMPLATE + shift, score=1.0) for shift in (0, 40)]


def photo(*colour: int) -> np.ndarray:
    return np.full((112, 112, 3), colour, np.uint8)


def test_the_largest_face_of_each_photo_and_the_mean_of_the_encoders_cosines() -> None:
    photos = [photo(200, 0, 0), photo(0, 0, 0), photo(200, 200, 0)]
    for encoders in ([encoder("a")], [encoder("a"), encoder("clip:x"), encoder("b")]):
        found = largest_faces(photos, Template(), encoders, torch.device("cpu"))  # type: ignore[arg-type]
        assert len(found) == 2
        assert np.allclose([np.linalg.norm(one) for one in found], 1, atol=1e-5)
        assert np.isclose(found[0] @ found[1], 0.5**0.5, atol=1e-5)


def test_clip_alone_compares_nothing() -> None:
    assert largest_faces([photo(9, 9, 9)], SimpleNamespace(), [encoder("clip:x")], torch.device("cpu")) == []  # type: ignore[arg-type]
