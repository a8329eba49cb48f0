"""Layers of a small vision transformer (Dosovitskiy et al. 2021) that write themselves into an ONNX graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dladiff.training.graph import Graph


class Tokens(nn.Module):
    """Turn an image of features into tokens, with a learned position each."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.count = channels, side * side
        self.position = nn.Parameter(0.02 * torch.randn(1, self.count, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, c, s, s] to [b, s s, c]."""
        return x.flatten(2).transpose(1, 2) + self.position

    def write(self, graph: Graph, x: str) -> str:
        """Append reshape, transposition and sum."""
        y = graph.add("Reshape", [x, graph.integers([0, self.channels, self.count])])
        y = graph.add("Transpose", [y], perm=[0, 2, 1])
        return graph.add("Add", [y, graph.constant(self.position)])


class _Linear(nn.Linear):
    def write(self, graph: Graph, x: str) -> str:
        product = graph.add("MatMul", [x, graph.constant(self.weight.T)])
        return graph.add("Add", [product, graph.constant(self.bias)])


class _Norm(nn.LayerNorm):
    def write(self, graph: Graph, x: str) -> str:
        inputs = [x, graph.constant(self.weight), graph.constant(self.bias)]
        return graph.add("LayerNormalization", inputs, axis=-1, epsilon=self.eps)


class Transformer(nn.Module):
    """Block of a transformer: attention, then two linear layers, each normalised before and added to its input."""

    def __init__(self, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.tokens, self.width = heads, tokens, channels // heads
        self.first, self.second = _Norm(channels), _Norm(channels)
        self.qkv, self.out = _Linear(channels, 3 * channels), _Linear(channels, channels)
        self.wide, self.narrow = _Linear(channels, 2 * channels), _Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, n, c] to the same shape."""
        parts = self.qkv(self.first(x)).reshape(len(x), self.tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = torch.softmax(query @ key.transpose(2, 3) * self.width**-0.5, -1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(len(x), self.tokens, -1))
        result: Tensor = x + self.narrow(torch.relu(self.wide(self.second(x))))
        return result

    def write(self, graph: Graph, x: str) -> str:
        """Append attention and linear layers."""
        y = self.qkv.write(graph, self.first.write(graph, x))
        y = graph.add("Reshape", [y, graph.integers([0, self.tokens, 3, self.heads, self.width])])
        y = graph.add("Transpose", [y], perm=[2, 0, 3, 1, 4])
        query, key, value = (graph.add("Gather", [y, graph.integers(i)], axis=0) for i in range(3))
        scores = graph.add("MatMul", [query, graph.add("Transpose", [key], perm=[0, 1, 3, 2])])
        scores = graph.add("Mul", [scores, graph.constant(torch.tensor(self.width**-0.5))])
        mixed = graph.add("MatMul", [graph.add("Softmax", [scores], axis=-1), value])
        mixed = graph.add("Transpose", [mixed], perm=[0, 2, 1, 3])
        mixed = graph.add("Reshape", [mixed, graph.integers([0, self.tokens, self.heads * self.width])])
        x = graph.add("Add", [x, self.out.write(graph, mixed)])
        y = graph.add("Relu", [self.wide.write(graph, self.second.write(graph, x))])
        return graph.add("Add", [x, self.narrow.write(graph, y)])


class MeanToken(nn.Module):
    """The mean of the normalised tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, n, c] to [b, c]."""
        result: Tensor = self.norm(x).mean(1)
        return result

    def write(self, graph: Graph, x: str) -> str:
        """Append normalisation and mean."""
        return graph.add("ReduceMean", [self.norm.write(graph, x)], axes=[1], keepdims=0)
