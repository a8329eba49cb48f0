"""Layers of the small encoders; each computes in PyTorch and writes itself into an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dladiff.training.graph import Graph


class Layer(Protocol):
    """A module that can write itself into an ONNX graph."""

    def write(self, graph: Graph, x: str) -> str:
        """Append the layer's nodes for the input named `x`; return the name of its output."""


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

    def write(self, graph: Graph, x: str) -> str:
        """Append a convolution with its normalisation folded in, and its activation."""
        weight, bias = self.folded()
        y = graph.convolution(x, weight, bias, stride=self.conv.stride[0], pad=self.pad, groups=self.conv.groups)
        if isinstance(self.act, nn.PReLU):
            return graph.add("PRelu", [y, graph.constant(self.act.weight.view(-1, 1, 1))])
        return graph.add("Relu", [y]) if self.kind == "relu" else y


class Block(nn.Module):
    """Residual block: layers plus their input, followed by a ReLU if `relu` is true."""

    def __init__(self, units: Sequence[nn.Module], relu: bool) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, c, h, w] to the same shape."""
        y: Tensor = x + self.units(x)
        return torch.relu(y) if self.relu else y

    def write(self, graph: Graph, x: str) -> str:
        """Append the layers, the sum and the ReLU."""
        y = graph.add("Add", [x, graph.chain(self.units, x)])
        return graph.add("Relu", [y]) if self.relu else y


class SqueezeExcite(nn.Module):
    """Weigh channels by a gate of their means (Hu et al. 2018), reduction 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 8, 1), nn.Conv2d(channels // 8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, c, h, w] to the same shape."""
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        result: Tensor = x * gate
        return result

    def write(self, graph: Graph, x: str) -> str:
        """Append the means, the two convolutions and the product."""
        y = graph.add("GlobalAveragePool", [x])
        for number, conv in enumerate((self.down, self.up)):
            assert conv.bias is not None
            y = graph.convolution(y, conv.weight, conv.bias)
            y = graph.add(("Relu", "Sigmoid")[number], [y])
        return graph.add("Mul", [x, y])


class Pool(nn.Module):
    """The largest of 2 x 2 cells."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, c, h, w] to [b, c, h / 2, w / 2]."""
        return functional.max_pool2d(x, 2)

    def write(self, graph: Graph, x: str) -> str:
        """Append the pooling."""
        return graph.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])


class Shuffle(nn.Module):
    """Unit of ShuffleNetV2 (Ma et al. 2018): one half of the channels passes, the other is convolved; then both mix.

    With `stride` 2 both halves are convolved, each from all channels, and the number of channels doubles. The mixing is
    the reshape of the paper: each output half has one half of either branch.
    """

    def __init__(self, into: int, side: int, stride: int = 1) -> None:
        """`side`: height and width of the output."""
        super().__init__()
        self.width, self.side, self.stride = into if stride == 2 else into // 2, side, stride
        half = self.width
        self.convolved = nn.Sequential(
            Unit(half, half, 1, activation="relu"),
            Unit(half, half, 3, stride, groups=half),
            Unit(half, half, 1, activation="relu"),
        )
        self.passed = nn.Sequential(
            *([Unit(half, half, 3, 2, groups=half), Unit(half, half, 1, activation="relu")] if stride == 2 else [])
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, c, h, w] to the same shape, or with stride 2 to [b, 2 c, h / 2, w / 2]."""
        if self.stride == 2:
            return torch.cat([self.passed(x), self.convolved(x)], 1)
        parts = x.reshape(len(x), 2, 2, self.width // 2, self.side, self.side)
        first, second = (parts[:, :, i].reshape(len(x), self.width, self.side, self.side) for i in (0, 1))
        return torch.cat([first, self.convolved(second)], 1)

    def write(self, graph: Graph, x: str) -> str:
        """Append the two branches."""
        if self.stride == 2:
            branches = [graph.chain(self.passed, x), graph.chain(self.convolved, x)]
            return graph.add("Concat", branches, axis=1)
        whole = [0, self.width, self.side, self.side]
        parts = graph.add("Reshape", [x, graph.integers([0, 2, 2, self.width // 2, self.side, self.side])])
        halves = [
            graph.add("Reshape", [graph.add("Gather", [parts, graph.integers(i)], axis=2), graph.integers(whole)])
            for i in (0, 1)
        ]
        return graph.add("Concat", [halves[0], graph.chain(self.convolved, halves[1])], axis=1)


class Flatten(nn.Module):
    """All values of an image in one row."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, c, h, w] to [b, c h w]."""
        return x.flatten(1)

    def write(self, graph: Graph, x: str) -> str:
        """Append the flattening."""
        return graph.add("Flatten", [x], axis=1)
