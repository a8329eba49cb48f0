"""The ONNX operators of face recognition networks in PyTorch, opsets 7 to 21, inference only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Inputs = Sequence[Tensor | None]
"""A node's inputs in order; None for an omitted optional input."""
Operator = Callable[[Inputs, Attributes], Tensor]


class UnsupportedError(Exception):
    """An operator has an attribute or input that this module does not support."""


def _first(inputs: Inputs) -> Tensor:
    return _at(inputs, 0)


def _at(inputs: Inputs, index: int) -> Tensor:
    tensor = inputs[index] if index < len(inputs) else None
    if tensor is None:
        raise UnsupportedError(f"input {index} is missing")
    return tensor


def _optional(inputs: Inputs, index: int) -> Tensor | None:
    return inputs[index] if index < len(inputs) else None


def _list(inputs: Inputs, attributes: Attributes, index: int, name: str) -> list[int] | None:
    """Return integers that are an attribute in older opsets and an input in newer ones, or None."""
    tensor = _optional(inputs, index)
    if tensor is not None:
        return [int(v) for v in tensor.flatten()]
    return list(attributes[name]) if name in attributes else None


def _pads(attributes: Attributes, value: float, x: Tensor) -> tuple[Tensor, list[int]]:
    """Return the input and the symmetric pads for the operator; asymmetric pads are applied to the input here."""
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError(f"auto_pad {attributes['auto_pad']} is not supported")
    rank = x.dim() - 2
    pads = list(attributes.get("pads", [0] * 2 * rank))
    if pads[:rank] == pads[rank:]:
        return x, pads[:rank]
    return functional.pad(x, _torch_pads(pads), value=value), [0] * rank


def _torch_pads(pads: Sequence[int]) -> list[int]:
    half = len(pads) // 2
    return [side for axis in reversed(range(half)) for side in (pads[axis], pads[half + axis])]


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    weight = _at(inputs, 1)
    x, pads = _pads(attributes, 0.0, _first(inputs))
    rank = weight.dim() - 2
    convolve = {1: torch.conv1d, 2: torch.conv2d}.get(rank)
    if convolve is None:
        raise UnsupportedError(f"a convolution over {rank} axes is not supported")
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    return convolve(
        x, weight, _optional(inputs, 2), list(strides), pads, list(dilations), int(attributes.get("group", 1))
    )


def _conv_transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, pads = _pads(attributes, 0.0, _first(inputs))
    if x is not inputs[0] or "output_shape" in attributes or x.dim() != 4:
        raise UnsupportedError("a transposed convolution with asymmetric pads, an output shape or axes other than two")
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    more, groups = attributes.get("output_padding", [0, 0]), int(attributes.get("group", 1))
    return functional.conv_transpose2d(
        x, _at(inputs, 1), _optional(inputs, 2), list(strides), pads, list(more), groups, list(dilations)
    )


def _prelu(inputs: Inputs, _: Attributes) -> Tensor:
    x, slope = _first(inputs), _at(inputs, 1)  # slope: the operator's own name for its second input
    if slope.dim() == x.dim() - 1 and slope.numel() == x.shape[1] == slope.shape[0]:
        return functional.prelu(x, slope.flatten())
    return torch.where(x > 0, x, x * slope)


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    if attributes.get("training_mode", 0):
        raise UnsupportedError("training_mode is not supported")
    scale, shift, mean, variance = (_at(inputs, i) for i in range(1, 5))
    epsilon = float(attributes.get("epsilon", 1e-5))
    return functional.batch_norm(_first(inputs), mean, variance, scale, shift, eps=epsilon)


def _instance_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    epsilon = float(attributes.get("epsilon", 1e-5))
    return functional.instance_norm(_first(inputs), weight=_at(inputs, 1), bias=_at(inputs, 2), eps=epsilon)


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    low, high = _optional(inputs, 1), _optional(inputs, 2)
    return torch.clamp(
        _first(inputs),
        float(low) if low is not None else attributes.get("min", -torch.inf),
        float(high) if high is not None else attributes.get("max", torch.inf),
    )


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = _first(inputs), int(attributes.get("axis", 1))
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(int(torch.Size(x.shape[:axis]).numel()), -1)


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, c = _first(inputs), _at(inputs, 1), _optional(inputs, 2)
    a = a.mT if attributes.get("transA", 0) else a
    b = b.mT if attributes.get("transB", 0) else b
    product = float(attributes.get("alpha", 1.0)) * (a @ b)
    return product if c is None else product + float(attributes.get("beta", 1.0)) * c


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    shape = _list(inputs, attributes, 1, "shape") or []
    if attributes.get("allowzero", 0):
        raise UnsupportedError("allowzero is not supported")
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _pool_settings(attributes: Attributes) -> tuple[list[int], list[int], list[int], bool]:
    kernel = list(attributes["kernel_shape"])
    if len(kernel) != 2:
        raise UnsupportedError(f"pooling over {len(kernel)} axes is not supported")
    ones = [1] * len(kernel)
    strides, dilations = list(attributes.get("strides", ones)), list(attributes.get("dilations", ones))
    return kernel, strides, dilations, bool(attributes.get("ceil_mode", 0))


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    kernel, strides, dilations, ceil = _pool_settings(attributes)
    x, pads = _pads(attributes, -torch.inf, _first(inputs))
    return functional.max_pool2d(x, kernel, strides, pads, dilations, ceil)


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    kernel, strides, dilations, ceil = _pool_settings(attributes)
    if dilations != [1, 1]:
        raise UnsupportedError("a dilated average pool is not supported")
    source, counted = _first(inputs), bool(attributes.get("count_include_pad", 0))
    x, pads = _pads(attributes, 0.0, source)
    pooled = functional.avg_pool2d(x, kernel, strides, pads, ceil, counted)
    if counted or x is source:
        return pooled
    inside, _ = _pads(attributes, 0.0, torch.ones_like(source[:1, :1]))
    return pooled / functional.avg_pool2d(inside, kernel, strides, pads, ceil, counted)


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    mode = attributes.get("mode", "constant")
    if mode != "constant" or _optional(inputs, 3) is not None:
        raise UnsupportedError(f"padding mode {mode} or padding of chosen axes is not supported")
    fill = _optional(inputs, 2)
    value = float(fill) if fill is not None else float(attributes.get("value", 0.0))
    return functional.pad(_first(inputs), _torch_pads(_list(inputs, attributes, 1, "pads") or []), value=value)


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = _list(inputs, attributes, 1, "axes")
    return _first(inputs).squeeze() if axes is None else _first(inputs).squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    axes = _list(inputs, attributes, 1, "axes") or []
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    return x.permute(list(attributes.get("perm", reversed(range(x.dim())))))


def _reduce_mean(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    axes = _list(inputs, attributes, 1, "axes") or list(range(x.dim()))
    return x.mean(dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = _first(inputs), int(attributes.get("axis", -1))
    shape = x.shape[axis:] if axis < 0 else x.shape[axis % x.dim() :]
    epsilon = float(attributes.get("epsilon", 1e-5))
    return functional.layer_norm(x, list(shape), _at(inputs, 1), _optional(inputs, 2), epsilon)


def _softmax(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Return the softmax over the last axis; over others, opsets before 13 mean another function."""
    x, axis = _first(inputs), int(attributes.get("axis", -1))
    if axis not in (-1, x.dim() - 1):
        raise UnsupportedError(f"a softmax over axis {axis} is not supported, only over the last")
    return torch.softmax(x, -1)


def _lp_normalization(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.normalize(
        _first(inputs), p=float(attributes.get("p", 2)), dim=int(attributes.get("axis", -1)), eps=1e-12
    )


def _constant(_: Inputs, attributes: Attributes) -> Tensor:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in attributes:
            value = attributes[name]
            return value if isinstance(value, Tensor) else torch.as_tensor(value)
    raise UnsupportedError("a constant that is neither a tensor nor numbers")


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, index, axis = _first(inputs), _at(inputs, 1), int(attributes.get("axis", 0))
    index = torch.where(index < 0, index + x.shape[axis], index).to(x.device)
    chosen = x.index_select(axis, index.flatten())
    return chosen.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Return the input cast: all float types to float32, ONNX types 6 and 7 (int32, int64) to int64."""
    kinds = {1: torch.float32, 10: torch.float32, 11: torch.float32, 6: torch.int64, 7: torch.int64}
    if attributes["to"] not in kinds:
        raise UnsupportedError(f"a cast to ONNX type {attributes['to']} is not supported")
    return _first(inputs).to(kinds[attributes["to"]])


def _divide(inputs: Inputs, _: Attributes) -> Tensor:
    a, b = _first(inputs), _at(inputs, 1)
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


OPERATORS: dict[str, Operator] = {
    "Add": lambda i, _: _first(i) + _at(i, 1),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda i, a: torch.cat([t for t in i if t is not None], dim=int(a["axis"])),
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _divide,
    "Dropout": lambda i, _: _first(i),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda i, _: _first(i).mean(dim=list(range(2, _first(i).dim())), keepdim=True),
    "Identity": lambda i, _: _first(i),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda i, a: functional.leaky_relu(_first(i), float(a.get("alpha", 0.01))),
    "LpNormalization": _lp_normalization,
    "MatMul": lambda i, _: _first(i) @ _at(i, 1),
    "MaxPool": _max_pool,
    "Mul": lambda i, _: _first(i) * _at(i, 1),
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": lambda i, _: functional.relu(_first(i)),
    "Reshape": _reshape,
    "Shape": lambda i, _: torch.tensor(_first(i).shape, dtype=torch.int64),
    "Sigmoid": lambda i, _: torch.sigmoid(_first(i)),
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": lambda i, _: _first(i) - _at(i, 1),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operators by ONNX name."""
BY_VALUE = frozenset({"Clip", "Pad", "ReduceMean", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that need the values of their inputs after the first: limits, shapes, axes."""
