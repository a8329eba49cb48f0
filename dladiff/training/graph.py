"""ONNX graphs in the InsightFace convention, written one operator at a time with half-precision weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

OPSET = 17
"""The first with LayerNormalization."""


class Graph:
    """ONNX nodes and half-precision initialisers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, values: Tensor) -> str:
        """Store values as float16 and return the name of their float32 cast."""
        name = f"w{len(self.weights)}"
        half: npt.NDArray[np.float16] = values.detach().cpu().numpy().astype(np.float16)
        self.weights.append(numpy_helper.from_array(np.asarray(half, order="C"), name + "_half"))
        self.nodes.append(helper.make_node("Cast", [name + "_half"], [name], name="cast_" + name, to=TensorProto.FLOAT))
        return name

    def integers(self, values: list[int] | int) -> str:
        """Store a shape or an index and return its name."""
        name = f"i{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def add(self, operator: str, inputs: list[str], **attributes: object) -> str:
        """Append a node and return the name of its output."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [out], name=f"n_{out}", **attributes))
        return out

    def convolution(self, x: str, weight: Tensor, bias: Tensor, stride: int = 1, pad: int = 0, groups: int = 1) -> str:
        """Append a convolution of square kernels and return the name of its output."""
        return self.add(
            "Conv",
            [x, self.constant(weight), self.constant(bias)],
            kernel_shape=list(weight.shape[2:]),
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=groups,
            dilations=[1, 1],
        )

    def chain(self, layers: nn.Sequential, x: str) -> str:
        """Append layers one after the other and return the name of the last one's output."""
        for layer in layers:
            x = layer.write(self, x)  # type: ignore[operator]
        return x


def export(net: Any, path: Path, properties: dict[str, str]) -> None:
    """Write a `Network` as ONNX: input [N, 3, 112, 112] RGB as (value - 127.5) / 127.5, one embedding.

    `properties` become the model's metadata. The file is written to a temporary name and then renamed.
    """
    graph = Graph()
    x = graph.chain(net.body, "input")
    weight, bias = graph.constant(net.head.weight), graph.constant(net.head.bias)
    graph.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["embedding"], name="n_head", transB=1))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "encoder",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 112, 112])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", net.head.out_features])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="dladiff",
    )
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(model.SerializeToString())
    temporary.replace(path)
