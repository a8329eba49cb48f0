"""Faces against InsightFace's alignment, OpenCV's warp, finite differences and photos with a known count."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dladiff.errors import ModelError, PhotoError
from dladiff.faces.boxes import distinct
from dladiff.faces.detect import (
    ARCFACE_TEMPLATE,
    CenterFaceDetector,
    Detector,
    ScrfdDetector,
    alignment_matrix,
    face_quad,
    inverse,
    warp,
)


@pytest.fixture(scope="module")
def centerface() -> Detector:
    return CenterFaceDetector()


@pytest.fixture(scope="module")
def scrfd(assets: Path) -> Detector:
    return ScrfdDetector(assets / "detectors" / "det_500m.onnx")


@pytest.fixture(scope="module")
def six_people() -> np.ndarray:
    from insightface.data import get_image

    return np.ascontiguousarray(get_image("t1")[:, :, ::-1])


def astronaut() -> np.ndarray:
    import skimage.data

    return skimage.data.astronaut()


def some_landmarks(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn = rng.uniform(-1, 1)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return rng.uniform(0.3, 20) * ARCFACE_TEMPLATE @ rotation.T + rng.normal(0, 3, (5, 2)) + rng.uniform(0, 500, 2)


@pytest.mark.parametrize("seed", range(5))
def test_alignment_is_insightfaces(seed: int) -> None:
    from insightface.utils.face_align import estimate_norm

    landmarks = some_landmarks(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # insightface calls a deprecated method of scikit-image
        expected = estimate_norm(landmarks)
    np.testing.assert_allclose(alignment_matrix(landmarks), expected, atol=1e-4)


def test_alignment_of_one_point_is_refused() -> None:
    with pytest.raises(PhotoError, match="one point"):
        alignment_matrix(np.ones((5, 2)))


def test_inverse_and_quad_come_back() -> None:
    matrix = alignment_matrix(some_landmarks(1))
    quad = np.concatenate([face_quad(matrix), np.ones((4, 1))], axis=1) @ matrix.T
    np.testing.assert_allclose(quad, [[-0.5, -0.5], [111.5, -0.5], [111.5, 111.5], [-0.5, 111.5]], atol=1e-9)
    np.testing.assert_allclose(inverse(inverse(matrix)), matrix, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 60.0])  # the second crop leaves the photo: zeros there
def test_warp_is_opencvs(shift: float) -> None:
    photo = cv2.GaussianBlur(np.random.default_rng(0).random((150, 170, 3)).astype(np.float32), (0, 0), 2)
    matrix = alignment_matrix(0.9 * ARCFACE_TEMPLATE @ np.array([[0.98, 0.2], [-0.2, 0.98]]).T + 20 + shift)
    expected = cv2.warpAffine(photo, matrix, (112, 112), flags=cv2.INTER_LINEAR, borderValue=0)
    got = warp(torch.from_numpy(photo).permute(2, 0, 1)[None], torch.from_numpy(matrix).float()[None])
    largest = max(np.abs(np.diff(photo, axis=axis)).max() for axis in (0, 1))
    difference = np.abs(got[0].permute(1, 2, 0).numpy() - expected)
    # OpenCV rounds sampling points to 1/32 px: half a step on each axis; at the photo's edge, of the value
    inside = warp(torch.ones(1, 3, 150, 170), torch.from_numpy(matrix).float()[None])[0].permute(1, 2, 0).numpy() == 1
    assert difference[inside].max() <= largest / 32 + 1e-5
    assert difference.max() <= photo.max() / 32 + 1e-5


def test_warp_gradients() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    matrices = torch.tensor([[[0.91, 0.13, -1.37], [-0.17, 1.07, 0.29]]], dtype=torch.float64)
    matrices = matrices.repeat(2, 1, 1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda i, m: warp(i, m, 5), (images, matrices), eps=1e-7, atol=1e-5)


def test_distinct_keeps_the_best_of_a_face() -> None:
    boxes = np.array([[0, 0, 10, 10, 0.6], [1, 0, 11, 10, 0.9], [20, 20, 30, 30, 0.5]])
    assert distinct(boxes) == [1, 2]


@pytest.mark.networks
def test_centerface_counts(centerface: Detector, six_people: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(centerface.detect(astronaut())) == 1
    faces = centerface.detect(six_people)
    assert len(faces) == 6
    areas = [(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in faces]
    assert areas == sorted(areas, reverse=True)
    assert capsys.readouterr().out == ""


def test_nobody(centerface: Detector) -> None:
    assert centerface.detect(np.full((64, 90, 3), 128, dtype=np.uint8)) == []


@pytest.mark.networks
def test_the_same_face_at_every_size(centerface: Detector) -> None:
    original = astronaut()
    (reference,) = centerface.detect(original)
    for side in (128, 2000):
        photo = cv2.resize(original, (side, side), interpolation=cv2.INTER_AREA if side < 512 else cv2.INTER_LINEAR)
        (face,) = centerface.detect(photo)
        drift = np.abs(face.landmarks * 512 / side - reference.landmarks).max()
        assert drift < 0.1 * (reference.box[2] - reference.box[0])


@pytest.mark.networks
def test_a_face_cut_by_the_edges(centerface: Detector) -> None:
    (whole,) = centerface.detect(astronaut())
    x0, y0, x1, y1 = (int(v) for v in whole.box)
    cut_x, cut_y = x0 + (x1 - x0) // 10, y0 + (y1 - y0) // 10
    (face,) = centerface.detect(np.ascontiguousarray(astronaut()[cut_y:y1, cut_x:x1]))
    drift = np.abs(face.landmarks + np.array([cut_x, cut_y]) - whole.landmarks).max()
    assert drift < 0.1 * (x1 - x0)
    assert face.box[0] >= 0 and face.box[1] >= 0 and face.box[2] <= x1 - cut_x and face.box[3] <= y1 - cut_y


def test_small_faces_are_left_out(six_people: np.ndarray) -> None:
    assert CenterFaceDetector(min_face_px=1000).detect(six_people) == []


@pytest.mark.networks
def test_same_photo_same_faces(centerface: Detector) -> None:
    first, again = (centerface.detect(astronaut())[0] for _ in range(2))
    assert first.box == again.box and first.score == again.score
    assert np.array_equal(first.landmarks, again.landmarks)


@pytest.mark.networks
@pytest.mark.parametrize("folder", ["celebahq_103", "celebahq_1972", "vggface2_n000050"])
@pytest.mark.parametrize("name", ["centerface", "scrfd"])
def test_close_ups_are_all_found(folder: str, name: str, assets: Path, request: pytest.FixtureRequest) -> None:
    detector: Detector = request.getfixturevalue(name)
    paths = sorted(p for p in (assets / "photos" / folder).iterdir() if p.suffix in (".jpg", ".png"))
    assert paths
    found = {p.name: len(detector.detect(np.array(Image.open(p).convert("RGB")))) for p in paths}
    assert set(found.values()) == {1}, found


def test_scrfd_counts(scrfd: Detector, six_people: np.ndarray) -> None:
    assert len(scrfd.detect(six_people)) == 6
    assert len(scrfd.detect(astronaut())) == 1


@pytest.mark.networks
def test_scrfd_passes_are_insightfaces(scrfd: Detector, assets: Path) -> None:
    from insightface.model_zoo import get_model

    network = get_model(str(assets / "detectors" / "det_500m.onnx"), providers=["CPUExecutionProvider"])
    network.prepare(-1, input_size=(640, 640), det_thresh=0.5)
    bgr = np.ascontiguousarray(astronaut()[:, :, ::-1])
    padded = cv2.copyMakeBorder(bgr, 256, 256, 256, 256, cv2.BORDER_CONSTANT)
    wanted = [(image, side) for image in (bgr, padded) for side in (640, 320, 128)]
    passes = scrfd.passes(astronaut())
    assert sum(len(faces) for faces in passes) >= 5
    for (image, side), faces in zip(wanted, passes, strict=True):
        boxes, landmarks = network.detect(image, input_size=(side, side))
        assert len(faces) == len(boxes) <= 1
        if not faces:
            continue  # a face of a few pixels
        drift = np.abs(landmarks[0] - (256 if image is padded else 0) - faces[0].landmarks).max()
        assert drift < 0.5 * 640 / side  # half a pixel of what the detector sees


@pytest.mark.networks
def test_centerface_passes_hold_the_faces_that_detect_merges(centerface: Detector, six_people: np.ndarray) -> None:
    photo = cv2.resize(six_people, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)  # small: no tiles
    passes = centerface.passes(photo)
    assert len(passes) == 3 and len(passes[0]) == 6
    marks = [face.landmarks for faces in passes for face in faces]
    assert all(any(np.array_equal(face.landmarks, m) for m in marks) for face in centerface.detect(photo))


def test_not_a_detector(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no face detector"):
        ScrfdDetector(tmp_path / "absent.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x00\x01")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        ScrfdDetector(bad)
