"""Metrics of pictures: against scikit-image, onnx graphs with known answers, and embeddings made by hand."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from skimage import metrics as reference

from dladiff.core import visibility
from dladiff.errors import ModelError
from dladiff.evaluation.crop import attacker_crop
from dladiff.evaluation.evaluator import (
    EmbeddedFaces,
    EncoderFeatures,
    Evaluator,
    embedded_features,
    load_evaluator,
    unit_mean,
)
from dladiff.evaluation.noise import noise_like
from dladiff.evaluation.scores import Networks, features_of, generated_rows, protected_row, quality_row
from dladiff.faces.detect import Face
from dladiff.faces.image_network import ImageNetwork

Picture = NDArray[np.uint8]


def face(box: tuple[float, float, float, float] = (10.0, 8.0, 40.0, 44.0)) -> Face:
    points = np.array([[20.0, 20], [32, 20], [26, 27], [21, 34], [31, 34]])
    return Face(box=box, landmarks=points, score=0.9)


class ByHand:
    """An evaluator whose result for a picture is in the first pixel: it has a face if red is above 0."""

    detector: Any = None

    def embed(self, picture: Picture) -> EmbeddedFaces | None:
        red, green = (float(v) for v in picture[0, 0, :2])
        if red == 0:
            return None
        angle = green / 255 * np.pi
        return EmbeddedFaces((face(),), {"e": np.array([np.cos(angle), np.sin(angle)])})


def picture(red: int, green: int) -> Picture:
    out = np.zeros((64, 64, 3), np.uint8)
    out[0, 0, :2] = red, green
    return out


def networks(**others: Any) -> Networks:
    evaluator: Any = ByHand()
    return Networks(evaluator=evaluator, features=lambda p: p[0, 0, :2].astype(np.float64), **others)  # type: ignore[arg-type]


def test_generated_pictures_one_by_one() -> None:
    reference_, originals = {"e": np.array([1.0, 0.0])}, {"e": np.array([0.0, 1.0])}
    rows = generated_rows([picture(9, 85), picture(0, 0)], reference_, originals, networks())
    assert rows[0]["face"] is True
    assert rows[0]["ism"]["e"] == pytest.approx(0.5)
    assert rows[0]["gen"]["e"] == pytest.approx(np.sqrt(3) / 2)
    assert rows[1] == {"face": False, "ism": {"e": None}, "gen": {"e": None}, "fiqa": None, "nsfw": None}


def test_networks_of_the_user_score() -> None:
    class Fiqa:
        def __call__(self, picture: Picture) -> NDArray[np.float64]:
            return np.array([picture.mean()])

    found = generated_rows(
        [picture(9, 0), picture(0, 0)],
        {},
        {},
        networks(fiqa=Fiqa(), safety=lambda pictures: [p[0, 0, 0] > 0 for p in pictures]),
    )
    assert [row["nsfw"] for row in found] == [True, False]
    assert found[0]["fiqa"] == pytest.approx(9 / (64 * 64 * 3))


def test_a_protected_photo_as_an_encoder_reads_it() -> None:
    same = protected_row(picture(1, 50), picture(1, 50), None, networks())
    assert same == {"original_face": True, "face": True, "pro": {"e": pytest.approx(1.0)}, "reference": {}}
    turned = protected_row(picture(1, 0), picture(1, 85), None, networks())
    assert turned["pro"]["e"] == pytest.approx(0.5)
    lost = protected_row(picture(1, 0), picture(0, 0), None, networks())
    assert lost == {"original_face": True, "face": False, "pro": {"e": None}, "reference": {}}
    assert protected_row(picture(0, 0), picture(1, 0), None, networks())["pro"] == {}


def test_a_protected_photo_is_compared_with_other_photos_of_the_person() -> None:
    reference_ = {"e": np.array([1.0, 0.0])}
    turned = protected_row(picture(1, 0), picture(1, 85), None, networks(), reference_)
    assert turned["reference"]["e"] == pytest.approx(0.5)
    assert protected_row(picture(1, 0), picture(0, 0), None, networks(), reference_)["reference"] == {"e": None}
    assert protected_row(picture(0, 0), picture(1, 0), None, networks(), reference_)["reference"] == {}


def test_pictures_are_scored_again_after_a_preprocessing() -> None:
    reference_ = {"e": np.array([1.0, 0.0])}
    turn = {"turn": lambda p: picture(9, 85), "hide": lambda p: picture(0, 0)}
    (row,) = generated_rows([picture(9, 0)], reference_, reference_, networks(), turn)
    assert row["ism"]["e"] == pytest.approx(1)
    assert row["rescored"] == {
        "turn": {"face": True, "ism": {"e": pytest.approx(0.5)}},
        "hide": {"face": False, "ism": {"e": None}},
    }
    assert "rescored" not in generated_rows([picture(9, 0)], reference_, reference_, networks())[0]


def test_quality_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(20, 230, (48, 56, 3)).astype(np.uint8)
    other = (one + rng.integers(-9, 10, one.shape)).astype(np.uint8)
    row = quality_row(one, other, [(10.2, 8.0, 39.5, 44.0)], networks())
    assert row["psnr"] == pytest.approx(reference.peak_signal_noise_ratio(one, other))
    inside = (slice(8, 44), slice(10, 40))
    assert row["psnr_face"] == pytest.approx(reference.peak_signal_noise_ratio(one[inside], other[inside]))
    assert row["ssim"] == pytest.approx(reference.structural_similarity(one, other, channel_axis=2))
    assert row["linf"] == 9 / 255
    assert row["lpips"] is None
    assert row["ssimulacra2"] == visibility.ssimulacra2(one, other) < 100
    assert row["ssimulacra2_face"] < 100
    assert quality_row(one, one, [], networks()) == {
        "psnr": None,
        "psnr_face": None,
        "ssim": 1.0,
        "linf": 0.0,
        "lpips": None,
        "ssimulacra2": 100.0,
        "ssimulacra2_face": None,
        "butteraugli": 0.0 if shutil.which(visibility.PROGRAM) else None,
    }


def onnx_file(path: Path, inputs: int, nodes: list[Any], shape: list[Any], meta: dict[str, str] | None = None) -> Path:
    """A graph that reads `a` (and `b`) of a shape and writes `out`."""
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("a", "b")[:inputs]]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "g", given, [out]), opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    helper.set_model_props(model, meta or {})
    onnx.save(model, str(path))
    return path


def mean_of(name: str) -> Any:
    return helper.make_node("ReduceMean", [name], ["out"], axes=[1, 2, 3], keepdims=0)


def test_onnx_networks_scale_and_resize(tmp_path: Path) -> None:
    grey = np.full((20, 30, 3), 51, np.uint8)
    plain = ImageNetwork(onnx_file(tmp_path / "plain.onnx", 1, [mean_of("a")], ["n", 3, 16, 16]), "quality")
    assert plain(grey)[0] == pytest.approx(51 / 127.5 - 1, abs=1e-6)
    meta = {"mean": "0", "std": "255"}
    scaled = ImageNetwork(onnx_file(tmp_path / "s.onnx", 1, [mean_of("a")], ["n", 3, "h", "w"], meta), "features")
    assert scaled(grey)[0] == pytest.approx(0.2, rel=1e-3)  # onnxruntime sums 299 x 299 values in fp32
    assert scaled.name == "s"


def test_lpips_takes_two_pictures_of_any_size(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["a", "b"], ["d"]), helper.make_node("Abs", ["d"], ["m"]), mean_of("m")]
    network = ImageNetwork(onnx_file(tmp_path / "lpips.onnx", 2, nodes, ["n", 3, "h", "w"]), "lpips")
    one, other = np.full((20, 30, 3), 51, np.uint8), np.full((20, 30, 3), 102, np.uint8)
    assert quality_row(one, other, [], networks(lpips=network))["lpips"] == pytest.approx(51 / 127.5, abs=1e-6)


@pytest.mark.parametrize("fault", ["missing", "damaged", "shape", "mean"])
def test_networks_that_do_not_fit_are_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "net.onnx"
    if fault == "damaged":
        path.write_bytes(b"nothing")
    elif fault == "shape":
        onnx_file(path, 1, [helper.make_node("Identity", ["a"], ["out"])], [1, 5])
    elif fault == "mean":
        onnx_file(path, 1, [mean_of("a")], [1, 3, 8, 8], {"mean": "grey"})
    with pytest.raises(ModelError, match=r"net\.onnx"):
        ImageNetwork(path, "features")


def test_noise_is_as_strong_as_the_protection_and_in_the_same_places() -> None:
    rng = np.random.default_rng(0)
    original = rng.integers(40, 216, (40, 40, 3)).astype(np.uint8)
    protected = original.copy()
    protected[10:30, 5:35] += rng.integers(0, 8, (20, 30, 3)).astype(np.uint8)
    noisy = noise_like(original, protected, 0, "a")
    expected, got = (np.square(x.astype(float) - original).mean() for x in (protected, noisy))
    assert got == pytest.approx(expected, rel=0.01)
    untouched = (protected == original).all(2)
    assert (noisy[untouched] == original[untouched]).all()
    signs = np.sign(noisy.astype(int) - original)[10:30, 5:35]
    assert abs(signs.mean()) < 0.1
    assert (noisy == noise_like(original, protected, 0, "a")).all()
    assert (noisy != noise_like(original, protected, 0, "b")).any()
    assert (noise_like(original, original, 0, "a") == original).all()


def test_the_attacker_crops_the_detected_face_or_drops_the_photo() -> None:
    class One:
        def __init__(self, found: list[Face]) -> None:
            self.found = found

        def detect(self, rgb: Picture) -> list[Face]:
            return self.found

    photo = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    cut = attacker_crop(photo, "face", 32, One([face()]))  # type: ignore[arg-type]
    assert cut is not None
    assert cut.shape == (32, 32, 3)
    assert attacker_crop(photo, "face", 32, One([])) is None  # type: ignore[arg-type]
    whole = attacker_crop(photo, "photo", 90, One([]))  # type: ignore[arg-type]
    assert whole is not None and np.array_equal(whole, photo[:, 15:105])


def test_the_mean_of_unit_vectors_is_one() -> None:
    found = unit_mean([np.array([1.0, 0]), np.array([0.0, 1])])
    assert found == pytest.approx([np.sqrt(0.5)] * 2)


@pytest.mark.networks
def test_the_bundled_evaluator_tells_people_apart(assets: Path) -> None:
    import cv2

    names = ("celebahq_103/set_B_2263.jpg", "celebahq_103/set_B_2300.jpg", "vggface2_n000050/set_B_0012_01.png")
    read: list[Any] = [cv2.imread(str(assets / "photos" / n)) for n in names]
    photos = [bgr[:, :, ::-1].copy() for bgr in read]
    evaluator = load_evaluator(["embedded:mobile"])
    one, same, other = (evaluator.embed(p) for p in photos)
    assert one is not None
    assert same is not None
    assert other is not None
    vectors = [r.embeddings["mobile"] for r in (one, same, other)]
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert evaluator.embed(np.zeros((80, 80, 3), np.uint8)) is None
    mean, count = evaluator.mean_embedding([*photos[:2], np.zeros((80, 80, 3), np.uint8)])
    assert count == 2
    assert mean["mobile"] @ vectors[0] > 0.8
    assert Evaluator(evaluator.detector, ()).mean_embedding([]) == ({}, 0)


def test_bundled_features_are_the_encoders_before_normalisation() -> None:
    crop = np.random.default_rng(0).integers(0, 255, (112, 112, 3)).astype(np.uint8)
    network = embedded_features()
    assert isinstance(network, EncoderFeatures)
    features = features_of([crop, crop], network)
    assert features.shape == (2, 128)
    x = torch.from_numpy(crop).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        unit = network.encoder(x)[0].numpy()
    assert features[0] / np.linalg.norm(features[0]) == pytest.approx(unit, abs=1e-5)
