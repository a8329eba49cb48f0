"""Faces given by the user: merged with detected ones, landmarks estimated, protected like them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dladiff.core.exchange import PhotoIn
from dladiff.core.pixels import to_float
from dladiff.core.randomness import stream
from dladiff.faces.boxes import Face, iou
from dladiff.faces.detect import CenterFaceDetector
from dladiff.faces.given import LANDMARKS_IN_BOX, with_given
from dladiff.layers.stop_rule import FaceReader, StopRule
from dladiff.service import named_encoder
from dladiff.settings.schema import ZeroShotConfig

BLANK = np.zeros((200, 300, 3), np.uint8)


def given(*faces: Any) -> PhotoIn:
    return PhotoIn(key="a", pixels=BLANK, faces=[{"box": box, "landmarks": marks} for box, marks in faces])


def found(*box: float) -> Face:
    return Face(box=box, landmarks=np.zeros((5, 2)), score=0.9)  # type: ignore[arg-type]


def test_given_faces_join_the_detected_ones_largest_first_and_duplicates_are_dropped() -> None:
    detected = [found(10, 10, 110, 110)]
    photo = given(
        ([12, 12, 112, 112], None), ([100, 0, 300, 200], None), ([105, 0, 300, 200], None), ([0, 150, 20, 170], None)
    )
    assert [face.box for face in with_given(detected, photo)] == [
        (100, 0, 300, 200),
        (10, 10, 110, 110),
        (0, 150, 20, 170),
    ]
    assert with_given(detected, given()) == detected


def test_boxes_are_clipped_and_those_outside_are_dropped() -> None:
    faces = with_given([], given(([-50, -50, 50, 50], None), ([400, 0, 500, 100], None)))
    assert [face.box for face in faces] == [(0, 0, 50, 50)]
    assert faces[0].landmarks[2].tolist() == [0, 10]  # the nose of the whole box, not of what is left of it


def test_landmarks_are_taken_or_estimated_from_the_box() -> None:
    marks = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    own, estimated = with_given([], given(([0, 0, 100, 100], marks), ([150, 0, 200, 100], None)))
    assert own.landmarks.tolist() == marks
    assert np.allclose(estimated.landmarks, [150, 0] + LANDMARKS_IN_BOX * [50, 100])


@pytest.mark.networks
def test_estimated_landmarks_are_near_the_detectors(assets: Path) -> None:
    detector, distances = CenterFaceDetector(), []
    for file in sorted((assets / "photos" / "celebahq_1972").glob("*.jpg")):
        pixels = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        face = detector.detect(pixels)[0]
        photo = PhotoIn(key="a", pixels=pixels, faces=[{"box": face.box, "landmarks": None}])
        (own,) = with_given([], photo)
        width = face.box[2] - face.box[0]
        distances.append(np.linalg.norm(own.landmarks - face.landmarks, axis=1).mean() / width)
    assert np.mean(distances) < 0.12


class Nothing:
    """A detector that finds no face in any pass."""

    name, sha256, licence = "none", "0", "none"

    def detect(self, rgb: Any) -> list[Face]:
        return []

    def passes(self, rgb: Any) -> list[list[Face]]:
        return [[], []]

    def passes_near(self, rgb: Any, faces: Any) -> list[list[list[Face]]]:
        return [[[], []] for _ in faces]


def test_where_no_pass_finds_the_face_the_fixed_alignments_decide() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    (face,) = with_given([], PhotoIn(key="a", pixels=pixels, faces=[{"box": [50, 50, 150, 160], "landmarks": None}]))
    x, detector = to_float(pixels), Nothing()
    reader = FaceReader(x, face, detector.passes(pixels), [named_encoder("embedded:residual")])
    assert len(reader.bases) == 1
    rule = StopRule(reader, detector, ZeroShotConfig(threshold=0.5), stream(0, "views"))
    assert max(rule(x)) > 0.9  # the face itself
    changed = x.clone()
    changed[..., 40:170, 40:160] = torch.rand(1, 3, 130, 120, generator=torch.Generator().manual_seed(1))
    cosines = rule(changed)
    assert len(cosines) == 1 and cosines[0] < max(rule(x))
    assert cosines == reader.max_cosines_at(changed.mul(255).round().div(255), rule.alignments, rule.bases)


@pytest.mark.networks
def test_a_given_face_is_protected_like_a_detected_one() -> None:
    from dladiff.service import Protector

    rng = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8), (0, 0), 3)
    settings = {"layers": "zero_shot", "zero_shot": {"max_steps": 20, "draws": 1}}
    protector = Protector({"profile": "tiny", "overrides": settings, "gpu": False}, 0, 1)
    box = [20, 20, 100, 108]
    photos = [PhotoIn(key="a", pixels=pixels), PhotoIn(key="b", pixels=pixels, faces=[{"box": box, "landmarks": None}])]
    without, own = protector.protect_identity("x", photos, []).photos
    assert without.faces == [] and without.status == "failed"
    assert own.status == "protected" and iou(own.faces[0]["box"], box) == 1 and own.linf_face > 0
    assert own.similarity[0]["after"] < own.similarity[0]["before"]
    assert np.array_equal(own.pixels[110:], pixels[110:]) or own.linf > 0


def test_a_photo_without_given_faces_is_untouched() -> None:
    assert with_given([], SimpleNamespace(faces=(), pixels=BLANK)) == []  # type: ignore[arg-type]
