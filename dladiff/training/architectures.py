"""Two small face-recognition networks and their export to ONNX in the InsightFace convention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn


class Unit(nn.Module):
    """Convolution, batch normalisation and an optional activation ("relu", "prelu" or "" for none)."""

    def __init__(
        self, into: int, out: int, size: int = 3, stride: int = 1, groups: int = 1, activation: str = ""
    ) -> None:
        super().__init__()
        self.pad = size // 2 if size < 7 else 0
        self.conv = nn.Conv2d(into, out, size, stride, self.pad, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.kind = activation
        self.act: nn.Module = {"relu": nn.ReLU(), "prelu": nn.PReLU(out), "": nn.Identity()}[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, into, h, w] to [b, out, h / stride, w / stride]."""
        result: Tensor = self.act(self.norm(self.conv(x)))
        return result

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of one convolution that equals convolution and normalisation."""
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)  # type: ignore[operator,arg-type]
        shift = self.norm.bias - self.norm.running_mean * scale  # type: ignore[operator]
        return self.conv.weight * scale.view(-1, 1, 1, 1), shift


class Block(nn.Module):
    """Residual block: units plus their input, followed by a ReLU if `relu` is true."""

    def __init__(self, units: list[Unit], relu: bool) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, c, h, w] to the same shape."""
        y: Tensor = x + self.units(x)
        return torch.relu(y) if self.relu else y


class Network(nn.Module):
    """Units and blocks over a 112 px crop, then one linear layer; the embedding is not normalised."""

    def __init__(self, body: list[Unit | Block], channels: int, dimensions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(channels, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, 3, 112, 112], RGB as (value - 127.5) / 127.5, to [b, dimensions]."""
        result: Tensor = self.head(self.body(x).flatten(1))
        return result


def _bottleneck(into: int, middle: int, out: int, stride: int = 1) -> list[Unit]:
    return [
        Unit(into, middle, 1, activation="relu"),
        Unit(middle, middle, 3, stride, groups=middle, activation="prelu"),
        Unit(middle, out, 1),
    ]


def mobile(dimensions: int) -> Network:
    """Build the depthwise network, after MobileFaceNet: PReLU after depthwise steps, 0.4 million parameters."""
    body: list[Unit | Block] = [
        Unit(3, 16, 3, 2, activation="relu"),
        Unit(16, 32, 3, 2, activation="prelu"),
        *_bottleneck(32, 96, 64, 2),
        *[Block(_bottleneck(64, 128, 64), relu=False) for _ in range(2)],
        *_bottleneck(64, 256, 128, 2),
        *[Block(_bottleneck(128, 256, 128), relu=False) for _ in range(3)],
        Unit(128, 256, 1, activation="prelu"),
        Unit(256, 256, 7, groups=256),
    ]
    return Network(body, 256, dimensions)


def residual(dimensions: int) -> Network:
    """Build the plain residual network of 3 x 3 convolutions with ReLU, 0.5 million parameters."""
    body: list[Unit | Block] = []
    into = 3
    for width, blocks in ((16, 0), (32, 0), (64, 1), (128, 1)):
        body.append(Unit(into, width, 3, 2, activation="relu"))
        for _ in range(blocks):
            body.append(Block([Unit(width, width, activation="relu"), Unit(width, width)], relu=True))
        into = width
    body.append(Unit(into, into, 7, groups=into))
    return Network(body, into, dimensions)


ARCHITECTURES = {"mobile": mobile, "residual": residual}


class _Graph:
    """ONNX nodes and half-precision initialisers, written one operator at a time."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, values: Tensor) -> str:
        """Store values as float16 and return the name of their float32 cast."""
        half: npt.NDArray[np.float16] = values.detach().cpu().numpy().astype(np.float16)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(half), name + "_half"))
        self.nodes.append(helper.make_node("Cast", [name + "_half"], [name], name="cast_" + name, to=TensorProto.FLOAT))
        return name

    def add(self, operator: str, inputs: list[str], **attributes: object) -> str:
        """Append a node and return the name of its output."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [out], name=f"n_{out}", **attributes))
        return out

    def unit(self, unit: Unit, x: str) -> str:
        """Append a convolution with its normalisation folded in, and its activation."""
        label = f"w{len(self.nodes)}"
        weight, bias = unit.folded()
        inputs = [x, self.constant(label, weight), self.constant(label + "_b", bias)]
        stride, pad = unit.conv.stride[0], unit.pad
        size = list(unit.conv.kernel_size)
        y = self.add(
            "Conv",
            inputs,
            kernel_shape=size,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=unit.conv.groups,
            dilations=[1, 1],
        )
        if isinstance(unit.act, nn.PReLU):
            return self.add("PRelu", [y, self.constant(label + "_a", unit.act.weight.view(-1, 1, 1))])
        return self.add("Relu", [y]) if unit.kind == "relu" else y


def export(net: Network, path: Path, properties: dict[str, str]) -> None:
    """Write the network as ONNX opset 13: input [N, 3, 112, 112] RGB as (value - 127.5) / 127.5, one embedding.

    `properties` become the model's metadata. The file is written to a temporary name and then renamed.
    """
    graph = _Graph()
    x = "input"
    for part in net.body:
        if isinstance(part, Unit):
            x = graph.unit(part, x)
            continue
        start = x
        for unit in part.units:  # type: ignore[union-attr]
            x = graph.unit(unit, x)
        x = graph.add("Add", [start, x])
        x = graph.add("Relu", [x]) if part.relu else x
    x = graph.add("Flatten", [x], axis=1)
    weight, bias = graph.constant("head", net.head.weight), graph.constant("head_b", net.head.bias)
    graph.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["embedding"], name="n_head", transB=1))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "encoder",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 112, 112])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", net.head.out_features])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
        producer_name="dladiff",
    )
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(model.SerializeToString())
    temporary.replace(path)
