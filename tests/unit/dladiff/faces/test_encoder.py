"""Identity encoders against onnxruntime and InsightFace's own pipeline."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch.nn import functional

from dladiff.core.pixels import to_float
from dladiff.errors import ModelError
from dladiff.faces.detect import alignment_matrix, warp
from dladiff.faces.encoder import detector_from_pack, encoder_from_pack, load_encoder
from dladiff.faces.onnx_import import OnnxNetwork, check_parity
from tests.support.iresnet import export, random_iresnet


def save(path: Path, nodes: list[Any], weights: dict[str, np.ndarray], shape: list[Any], opset: int = 13) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save_model(model, str(path))
    return path


def flat_encoder(path: Path, side: int = 112, names: tuple[str, str] = ("Sub0", "Mul0")) -> Path:
    weight = np.random.default_rng(0).normal(size=(8, 3, side, side)).astype(np.float32) / side
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"], name=names[0]),
        helper.make_node("Mul", ["a", "scale"], ["b"], name=names[1]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    constants: dict[str, Any] = {
        "mean": np.array([127.5], np.float32),
        "scale": np.array([1 / 127.5], np.float32),
        "w": weight,
    }
    return save(path, nodes, constants, ["N", 3, side, side])


@pytest.mark.networks
@pytest.mark.parametrize("pack", ["mini_y1", "mini_relu6"])
def test_embedding_is_insightfaces(pack: str, assets: Path) -> None:
    from insightface.app import FaceAnalysis

    folder = assets / "insightface_pack" / pack
    encoder = load_encoder(encoder_from_pack(folder))
    app = FaceAnalysis(
        name=str(folder), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
    )
    app.prepare(ctx_id=-1, det_size=(320, 320))
    compared = 0
    for path in sorted((assets / "photos" / "celebahq_103").glob("set_A_*.jpg")):
        pixels = np.array(Image.open(path).convert("RGB"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # insightface calls a deprecated method of scikit-image
            faces = app.get(np.ascontiguousarray(pixels[:, :, ::-1]))
        for face in faces:
            matrix = torch.from_numpy(alignment_matrix(face.kps)).float()[None]
            got = encoder(warp(to_float(pixels), matrix))[0].numpy()
            assert float(got @ face.normed_embedding) > 0.999
            compared += 1
    assert compared


def test_gradient_against_finite_differences(assets: Path) -> None:
    encoder = load_encoder(encoder_from_pack(assets / "insightface_pack" / "mini_y1")).double()
    generator = torch.Generator().manual_seed(1)
    crops = torch.rand(1, 3, 112, 112, generator=generator, dtype=torch.float64, requires_grad=True)
    target = encoder(torch.rand(1, 3, 112, 112, generator=generator, dtype=torch.float64))
    weights = torch.randn(crops.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((encoder(crops) * target).sum(), crops)
    step = 1e-6
    high, low = ((encoder(crops.detach() + s * step * weights) * target).sum() for s in (1, -1))
    assert float((gradient * weights).sum()) == pytest.approx(float(high - low) / (2 * step), rel=1e-3)
    assert not list(encoder.parameters())


@pytest.mark.parametrize(
    ("depth", "width"),
    [
        *(pytest.param(depth, 4, marks=pytest.mark.networks) for depth in (50, 100)),
        pytest.param(50, 64, marks=pytest.mark.slow),
        pytest.param(100, 64, marks=pytest.mark.slow),
    ],
)
def test_iresnet_is_the_network_that_was_exported(depth: int, width: int, tmp_path: Path) -> None:
    network = random_iresnet(depth, width)
    encoder = load_encoder(export(network, tmp_path / "r.onnx"))
    crops = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(6), requires_grad=True)
    expected = functional.normalize(network(crops * 2 - 1), dim=1)
    got = encoder(crops)
    assert (encoder.mean, encoder.std) == (127.5, 127.5) and got.shape == (2, 512)
    assert torch.allclose(got, expected, atol=1e-5)
    gradients = [torch.autograd.grad(e[0, 0] - e[1, 1], crops)[0] for e in (got, expected)]
    one, other = (gradient.flatten() for gradient in gradients)
    assert float(functional.cosine_similarity(one, other, dim=0)) == pytest.approx(1, abs=1e-5)


def test_pack_folders(assets: Path, tmp_path: Path) -> None:
    pack = assets / "insightface_pack" / "mini_y1"
    assert encoder_from_pack(pack).name == "rec_mobilefacenet_y1.onnx"
    assert detector_from_pack(pack).name == "det_500m.onnx"
    with pytest.raises(ModelError, match="no recognition model"):
        encoder_from_pack(tmp_path)
    with pytest.raises(ModelError, match="no detection model"):
        detector_from_pack(tmp_path)


@pytest.mark.parametrize(("names", "scale"), [(("Sub0", "Mul0"), (0.0, 1.0)), (("a", "b"), (127.5, 127.5))])
def test_scaling_rule_is_insightfaces(names: tuple[str, str], scale: tuple[float, float], tmp_path: Path) -> None:
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    path = flat_encoder(tmp_path / "e.onnx", names=names)
    theirs = ArcFaceONNX(str(path), onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
    encoder = load_encoder(path)
    assert (encoder.mean, encoder.std) == (theirs.input_mean, theirs.input_std) == scale
    crop = np.random.default_rng(3).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    expected = theirs.get_feat(np.ascontiguousarray(crop[:, :, ::-1]))[0]
    cosine = float(encoder(to_float(crop))[0].numpy() @ (expected / np.linalg.norm(expected)))
    assert cosine == pytest.approx(1, abs=1e-5)


def test_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Nx3x112x112"):
        load_encoder(flat_encoder(tmp_path / "e.onnx", side=96))


def test_unknown_operator_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "odd.onnx", [helper.make_node("Erf", ["x"], ["y"], name="n7")], {}, ["N", 3, 112, 112])
    with pytest.raises(ModelError, match=r"odd\.onnx uses operator Erf in node n7"):
        load_encoder(path)


def test_a_softmax_over_another_axis_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=1, name="n3")]
    path = save(tmp_path / "odd.onnx", nodes, {}, ["N", 3, 112, 112])
    with pytest.raises(ModelError, match="a softmax over axis 1 is not supported, only over the last"):
        load_encoder(path)


def test_external_weights_and_invalid_files_are_refused(tmp_path: Path) -> None:
    path = flat_encoder(tmp_path / "e.onnx")
    model = onnx.load_model(str(path))
    onnx.save_model(model, str(tmp_path / "out.onnx"), save_as_external_data=True, size_threshold=0)
    with pytest.raises(ModelError, match="other files"):
        load_encoder(tmp_path / "out.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        load_encoder(tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match="no model at"):
        load_encoder(tmp_path / "absent.onnx")


def small(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


OPERATORS: list[tuple[list[Any], dict[str, np.ndarray]]] = [
    (
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 0, 2, 3], strides=[2, 1], dilations=[1, 2], group=2)],
        {"w": small(6, 2, 3, 3)},
    ),
    ([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[0, 1, 1, 1], strides=[2, 2])], {}),
    ([helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[0, 1, 1, 0])], {}),
    ([helper.make_node("PRelu", ["x", "s"], ["y"])], {"s": small(4, 1, 1)}),
    (
        [helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
        {"s": small(4), "b": small(4), "m": small(4), "v": np.abs(small(4))},
    ),
    ([helper.make_node("Pad", ["x", "p"], ["y"])], {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0], dtype=np.int64)}),
    ([helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1)],
     {"w": small(5, 4 * 9 * 9), "b": small(5)}),
    ([helper.make_node("Cast", ["h"], ["c"], to=1), helper.make_node("Div", ["x", "c"], ["y"])],
     {"h": np.array([0.3], np.float16)}),
    ([helper.make_node("ReduceMean", ["x"], ["r"], axes=[2, 3], keepdims=0),
      helper.make_node("LpNormalization", ["r"], ["y"], axis=1, p=2)], {}),
    ([helper.make_node("Clip", ["x", "", "high"], ["y"])], {"high": np.array(0.4, np.float32)}),
    ([helper.make_node("GlobalAveragePool", ["x"], ["g"]),
      helper.make_node("Squeeze", ["g", "axes"], ["s"]), helper.make_node("Sigmoid", ["s"], ["y"])],
     {"axes": np.array([2, 3])}),
    ([helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
      helper.make_node("Reshape", ["t", "to"], ["y"])], {"to": np.array([0, -1])}),
    ([helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-1, epsilon=1e-3)],
     {"s": small(9), "b": small(9)}),
    ([helper.make_node("LayerNormalization", ["x", "s"], ["y"], axis=2)], {"s": small(9, 9)}),
    ([helper.make_node("Softmax", ["x"], ["y"])], {}),
    ([helper.make_node("Softmax", ["x"], ["y"], axis=3)], {}),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights"), OPERATORS, ids=lambda v: v[-1].op_type if isinstance(v, list) else "")
def test_operators_are_onnxruntimes(nodes: list[Any], weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = save(tmp_path / "op.onnx", nodes, weights, ["N", 4, 9, 9])
    network = OnnxNetwork(onnx.load_model(str(path)), path)
    sample = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(2))
    check_parity(network, sample)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(network(sample).numpy(), session.run(None, {"x": sample.numpy()})[0], atol=1e-5)


def test_a_fixed_batch_is_refused_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = numpy_helper.from_array(np.array([1, -1], np.int64), "shape")
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, (1, 3, 112, 112))],
        [helper.make_tensor_value_info("y", kind, (1, 3 * 112 * 112))],
        [shape],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(ModelError, match="its batch is fixed"):
        load_encoder(path)


def test_another_output_than_onnxruntimes_is_refused(tmp_path: Path) -> None:
    path = flat_encoder(tmp_path / "e.onnx")
    network = OnnxNetwork(onnx.load_model(str(path)), path)
    with torch.no_grad():
        network.get_buffer("constant_2").normal_(generator=torch.Generator().manual_seed(4))
    with pytest.raises(ModelError, match="differs from onnxruntime"):
        check_parity(network, torch.rand(2, 3, 112, 112))
