"""halve: float16 weights, the same embeddings."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dladiff.faces.onnx_session import onnx_session
from dladiff.service import named_encoder
from dladiff.training.halve import halved


def test_a_halved_file_answers_the_same_within_float16(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    shape = numpy_helper.from_array(np.array([0, -1], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "w"], ["c"]), helper.make_node("Reshape", ["c", "shape"], ["out"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", None])],
        [numpy_helper.from_array(weight, "w"), shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found = halved(model, {"licence": "MIT"})
    kinds = {tensor.name: tensor.data_type for tensor in found.graph.initializer}
    assert kinds == {"w_half": TensorProto.FLOAT16, "shape": TensorProto.INT64}
    assert {p.key: p.value for p in found.metadata_props} == {"licence": "MIT"}
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    answers = []
    for name, one in (("before", model), ("after", found)):
        (tmp_path / name).write_bytes(one.SerializeToString())
        answers.append(onnx_session(tmp_path / name).run(None, {"input": x})[0])
    before, after = answers
    assert np.allclose(before, after, atol=0.02) and not np.array_equal(before, after)


@pytest.mark.networks
def test_the_embedded_full_size_encoder_is_its_publishers(assets: Path) -> None:
    """Its embeddings are those of the published network, whose weights are float16 too."""
    import torch

    from dladiff.training.distil import load_teacher

    crops = torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = named_encoder("embedded:mobilefacenet")(crops)
    theirs = load_teacher(assets, "mobilefacenet_tf")(crops)  # in bf16
    assert float((ours * theirs).sum(1).min()) > 0.995
    licence = onnx.load("dladiff/profiles/tiny/encoders/mobilefacenet.onnx").metadata_props
    assert {p.key: p.value for p in licence}["licence"] == "MIT"
