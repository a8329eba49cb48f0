"""Reading of untrusted ONNX files: size limits, no external weights, tensors checked against their shapes."""

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from dladiff.errors import ModelError

MAX_BYTES = 1_000_000_000
"""Largest file read, bytes: four times the largest known recognition model."""
MAX_STRUCTURE = 8 * 2**20
"""Largest number of bytes beside tensor data: 80 times IResNet-100's. The parser allocates up to 80 bytes for each."""
MAX_FIELDS = 200_000
"""Largest number of fields (nodes, inputs, attributes, tensor fields) in a file: 20 times IResNet-100's."""
NUMBERS = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64),
    }
)
"""Supported tensor types."""

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor"},
    "tensor": {
        4: "numbers",
        5: "numbers",
        9: "numbers",
        10: "numbers",
    },  # float_data, int32_data, raw_data, double_data
}
"""Fields of onnx.proto, by number, on the path to tensor data."""
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
"""Wire types of Protocol Buffers."""


def load_model(path: Path) -> Any:
    """Return an ONNX file's ModelProto. Raises ModelError: missing, too large, damaged, or with external weights."""
    if not path.is_file():
        raise ModelError(f"no model at {path}: name an ONNX file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(f"{path} is {size} bytes; at most {MAX_BYTES} are read")
    try:
        beside = _structure(path, size)
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path} is not a readable ONNX file") from error
    if beside > MAX_STRUCTURE:
        raise ModelError(f"{path} has {beside} bytes beside its weights, at most {MAX_STRUCTURE} are read: no network")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own class
        raise ModelError(f"{path} is not a readable ONNX file") from error
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{path} holds no ONNX graph")
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
        raise ModelError(f"{path} keeps weights in other files; save it as one file (onnx.save_model does by default)")
    return model


def read_tensor(proto: Any, path: Path) -> Tensor:
    """Return a TensorProto as a tensor. Raises ModelError: unsupported type, or data that do not fit its shape."""
    where = f"tensor {proto.name[:80]!r} of {path}"
    if proto.data_location == TensorProto.EXTERNAL or proto.external_data:
        raise ModelError(f"{path} keeps weights in other files; save it as one file")
    if proto.data_type not in NUMBERS:
        raise ModelError(f"{where} has ONNX type {proto.data_type}, which is not supported")
    dims = list(proto.dims)
    width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)).itemsize
    if any(size < 0 for size in dims) or math.prod(dims) * width > MAX_BYTES or len(dims) > 8:
        raise ModelError(f"{where} has an impossible shape: {'x'.join(map(str, dims[:8]))}")
    field = onnx.helper.tensor_dtype_to_field(proto.data_type)
    have = len(proto.raw_data) if proto.raw_data else len(getattr(proto, field)) * width
    if have != (needed := math.prod(dims) * width):
        raise ModelError(f"{where} has {have} bytes, its shape {'x'.join(map(str, dims))} needs {needed}")
    array = np.array(numpy_helper.to_array(proto))
    return torch.from_numpy(array.astype(np.float32) if proto.data_type == TensorProto.BFLOAT16 else array)


def _structure(path: Path, size: int) -> int:
    """Return how many bytes of the file are not tensor data, without parsing it into objects.

    The parser turns a message of two bytes into an object of a hundred bytes, so a file within MAX_BYTES could exhaust
    the memory. Raises ValueError: not a Protocol Buffers file, or more than MAX_FIELDS fields.
    """
    if not size:
        raise ValueError("empty")
    left, numbers = MAX_FIELDS, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        open_messages = [("model", 0, size)]
        while open_messages:
            kind, start, end = open_messages.pop()
            for number, begin, stop in _fields(data, start, end):
                left -= 1
                if left < 0:
                    raise ValueError("too many fields")
                inner = _MESSAGES[kind].get(number)
                if inner == "numbers":
                    numbers += stop - begin
                elif inner is not None:
                    open_messages.append((inner, begin, stop))
    return size - numbers


def _fields(data: Any, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field (number 0 if not length-delimited). Raises ValueError, IndexError."""
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            _, at = _varint(data, at)
            yield 0, at, at
        elif wire in (_EIGHT, _FOUR):
            at += 8 if wire == _EIGHT else 4
            yield 0, at, at
        elif wire == _LENGTH:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("cut off")
            yield key >> 3, at, at + length
            at += length
        else:
            raise ValueError("no such field")


def _varint(data: Any, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("number too long")


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model, including subgraphs, sparse tensors and functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            if graph.node or graph.initializer:
                yield from _graph_tensors(graph)


def attributes_of(node: Any, path: Path) -> Mapping[str, Any]:
    """Return a node's attributes as plain values and tensors. Raises ModelError."""
    return {attribute.name: _attribute(attribute, path) for attribute in node.attribute}


def _attribute(proto: Any, path: Path) -> Any:
    if proto.type == onnx.AttributeProto.TENSOR:
        return read_tensor(proto.t, path)
    try:
        value = onnx.helper.get_attribute_value(proto)
        return value.decode() if isinstance(value, bytes) else value
    except ValueError as error:  # unknown type, or text that is not UTF-8
        raise ModelError(f"attribute {proto.name[:80]!r} of {path} cannot be read") from error
