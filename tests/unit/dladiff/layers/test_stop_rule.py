"""Cosines after re-detection against InsightFace's own, at the detector sizes that people use."""

import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from dladiff.core.pixels import to_float
from dladiff.faces.detect import Face, ScrfdDetector, alignment_matrix
from dladiff.faces.encoder import IdentityEncoder, load_encoder
from dladiff.layers.stop_rule import FaceReader, StopRule, similarity_rows
from dladiff.settings.schema import ZeroShotConfig


class Counting:
    """A detector that counts calls of `passes_near`."""

    def __init__(self, detector: ScrfdDetector) -> None:
        self.detector, self.calls = detector, 0

    def passes_near(self, rgb: np.ndarray, faces: Sequence[Face]) -> list[list[list[Face]]]:
        self.calls += 1
        return self.detector.passes_near(rgb, faces)


def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:320, 64:384])


def changed() -> np.ndarray:
    """The photo with enough noise to move landmarks and embeddings."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 60, photo().shape), (0, 0), 2)
    return np.clip(photo() + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pack(assets: Path) -> Path:
    return assets / "insightface_pack" / "mini_y1"


@pytest.fixture(scope="module")
def detector(pack: Path) -> ScrfdDetector:
    return ScrfdDetector(pack / "det_500m.onnx")


@pytest.fixture(scope="module")
def encoder(pack: Path) -> IdentityEncoder:
    return load_encoder(pack / "rec_mobilefacenet_y1.onnx")


@pytest.fixture(scope="module")
def reader(detector: ScrfdDetector, encoder: IdentityEncoder) -> FaceReader:
    (face,) = detector.detect(photo())
    return FaceReader(to_float(photo()), face, detector.passes(photo()), [encoder])


@pytest.mark.networks
def test_insightface_measures_no_higher_cosine(pack: Path, detector: ScrfdDetector, reader: FaceReader) -> None:
    from insightface.app import FaceAnalysis

    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        app = FaceAnalysis(
            name=str(pack), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
        )

        def embedding(rgb: np.ndarray, size: Any, padded: bool) -> np.ndarray | None:
            app.prepare(ctx_id=-1, det_size=size)
            y, x = (rgb.shape[0] // 2, rgb.shape[1] // 2) if padded else (0, 0)
            faces = app.get(cv2.copyMakeBorder(rgb[..., ::-1], y, y, x, x, cv2.BORDER_CONSTANT))
            return faces[0].normed_embedding if faces else None

        settings = [(size, padded) for size in ((640, 640), (320, 320), None) for padded in (False, True)]
        pairs = [[embedding(p, *setting) for p in (photo(), changed())] for setting in settings]
    outside = [float(a @ b) for a, b in pairs if a is not None and b is not None]
    (inside,) = reader.max_cosines(to_float(changed()), detector.passes(changed()))
    assert len(outside) >= 4 and max(outside) < 0.95, outside
    assert inside > max(outside) - 0.01


def test_a_detector_pass_without_the_face_is_ignored(reader: FaceReader) -> None:
    elsewhere = Face(box=(0.0, 0.0, 30.0, 30.0), landmarks=reader.face.landmarks * 0.1, score=0.9)
    picture = to_float(changed())
    passes = [[elsewhere], []] * (len(reader._base_of_pass) // 2)
    own = list(range(len(reader.bases)))
    assert reader.max_cosines(picture, passes) == pytest.approx(reader.max_cosines_at(picture, reader.bases, own))


def test_equal_alignments_are_kept_once(reader: FaceReader, encoder: IdentityEncoder) -> None:
    face = reader.face
    near = Face(box=face.box, landmarks=face.landmarks + 0.01, score=0.9)
    far = Face(box=face.box, landmarks=face.landmarks + 5, score=0.9)
    bases = FaceReader(to_float(photo()), face, [[near], [far], [far]], [encoder]).bases
    np.testing.assert_allclose(bases, [alignment_matrix(face.landmarks), alignment_matrix(far.landmarks)])


def test_the_detector_runs_only_when_the_fixed_alignments_are_below_the_threshold(
    reader: FaceReader, detector: ScrfdDetector
) -> None:
    counting: Any = Counting(detector)
    generator = torch.Generator().manual_seed(0)
    free = ZeroShotConfig().model_copy(update={"threshold": 1.0 + 1e-6})  # unchecked: a cosine of 1 may round to more
    strict, lax = (StopRule(reader, counting, config, generator) for config in (ZeroShotConfig(), free))
    original = to_float(photo())
    assert strict(original)[0] > 0.99 and counting.calls == 0
    assert lax(original)[0] > 0.99 and counting.calls == 1


def test_rows_hold_the_highest_cosine(reader: FaceReader, detector: ScrfdDetector, encoder: IdentityEncoder) -> None:
    (row,) = similarity_rows([reader], 1, photo(), changed(), detector)
    assert row["encoder"] == encoder.name and row["optimised"] and row["before"] == pytest.approx(1, abs=1e-3)
    assert row["after"] == pytest.approx(reader.max_cosines(to_float(changed()), detector.passes(changed()))[0])
    assert similarity_rows([], 1, photo(), changed(), detector) == []


@pytest.mark.networks
def test_a_small_face_in_a_large_photo_is_detected_again(detector: ScrfdDetector, encoder: IdentityEncoder) -> None:
    """Its alignments in the changed photo count, though no pass over the whole photo finds it."""
    large = np.full((2000, 3000, 3), 90, np.uint8)
    large[1300:1560, 2200:2460] = cv2.resize(photo(), (260, 260), interpolation=cv2.INTER_AREA)
    after = large.copy()
    after[1300:1560, 2200:2460] = cv2.resize(changed(), (260, 260), interpolation=cv2.INTER_AREA)
    (face,) = detector.detect(large)
    assert 80 < face.box[3] - face.box[1] < 140
    (passes,) = detector.passes_near(large, [face])
    found = FaceReader(to_float(large), face, passes, [encoder])
    assert sum(base is not None for base in found._base_of_pass) >= 3
    (again,) = detector.passes_near(after, [face])
    assert any(again)
    (with_detection,) = found.max_cosines(to_float(after), again)
    (without,) = found.max_cosines(to_float(after), [[] for _ in again])
    assert 1 > with_detection >= without
    (row,) = similarity_rows([found], 1, large, after, detector)
    assert row["before"] == pytest.approx(1, abs=1e-3) and row["after"] == pytest.approx(with_detection)


def test_without_encoders_there_are_no_rows(detector: ScrfdDetector) -> None:
    (face,) = detector.detect(photo())
    reader = FaceReader(to_float(photo()), face, detector.passes(photo()), [])
    assert similarity_rows([reader], 0, photo(), changed(), detector) == []
