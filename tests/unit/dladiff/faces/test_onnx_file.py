"""Hostile ONNX files: each is refused in one line, with little time and memory."""

import itertools
import mmap
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dladiff.errors import ModelError
from dladiff.faces import onnx_file, onnx_import
from dladiff.faces.detect import ScrfdDetector
from dladiff.faces.encoder import encoder_from_pack, load_encoder
from dladiff.faces.image_network import ImageNetwork
from dladiff.faces.onnx_file import load_model, read_tensor

Node: TypeAlias = onnx.NodeProto
MAX_MEMORY = 2 * 2**30
"""Bytes of address space that a test may add; a test that needs more fails instead of exhausting the machine."""


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    torch.empty(2, device="meta") + 1  # imported before the bound
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def made(path: Path, nodes: list[Node], weights: list[Any] | None = None, shape: Any = ("N", 3, 112, 112)) -> Any:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return model


def stated(dims: list[int], data: bytes = b"\0" * 16, kind: int = TensorProto.FLOAT) -> Any:
    """A tensor w with these fields."""
    tensor = TensorProto(name="w", data_type=kind)
    tensor.dims.extend(dims)
    tensor.raw_data = data
    return tensor


def integers(*values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), "i")


def ones(*shape: int, name: str = "w") -> Any:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def elsewhere(location: str) -> Any:
    tensor = stated([2], b"")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


node = helper.make_node
ADDED = [node("Add", ["x", "w"], ["y"])]


@pytest.mark.parametrize(
    "tensor, why",
    [
        (stated([2**40]), "impossible shape: 1099511627776"),
        (stated([2**62, 4], b""), "impossible shape"),
        (stated([-4, -1]), "impossible shape: -4x-1"),
        (stated([-1]), "impossible shape"),
        (stated([1] * 500), "impossible shape"),
        (stated([5]), "has 16 bytes, its shape 5 needs 20"),
        (stated([4], b""), "has 0 bytes"),
        (stated([4], kind=99), "ONNX type 99, which is not supported"),
        (stated([1], kind=TensorProto.STRING), "ONNX type 8"),
    ],
)
def test_tensors_that_do_not_fit_their_shape_are_refused(tensor: Any, why: str, tmp_path: Path) -> None:
    made(tmp_path / "e.onnx", ADDED, [tensor])
    with pytest.raises(ModelError, match=why):
        load_encoder(tmp_path / "e.onnx")
    constant = node("Constant", [], ["w"], value=tensor)  # the same inside a node
    made(tmp_path / "e.onnx", [constant, *ADDED])
    with pytest.raises(ModelError, match=why):
        load_encoder(tmp_path / "e.onnx")


@pytest.mark.parametrize("kind", ["float32", "float16", "float64", "int32", "int64", "bool"])
def test_real_tensors_are_read_as_onnx_reads_them(kind: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(kind)
    for proto in (
        numpy_helper.from_array(array, "w"),
        helper.make_tensor("w", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.flatten().tolist()),
    ):
        np.testing.assert_array_equal(read_tensor(proto, Path("e.onnx")).numpy(), array)
    half = helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.5, -2.0])
    assert read_tensor(half, Path("e.onnx")).tolist() == [1.5, -2.0]


def doubled(first: str, count: int = 40) -> list[Node]:
    names = [first, *(f"c{i}" for i in range(count))]
    return [node("Concat", [a, a], [b], axis=0) for a, b in itertools.pairwise(names)]


@pytest.mark.parametrize(
    "nodes, weights, why",
    [
        ([node("Reshape", ["x", "i"], ["y"])], [integers(2**60)], "node 0 .Reshape. .*invalid"),
        ([node("Reshape", ["x", "i"], ["y"])], [integers(-5, -7)], "Reshape"),
        ([node("Reshape", ["w", "i"], ["z"]), *ADDED], [ones(4), integers(2**60, -1)], "Reshape.*invalid"),
        ([node("Conv", ["x", "w"], ["y"], pads=[2**30] * 4)], [ones(4, 3, 3, 3)], "node 0 .Conv."),
        ([node("Conv", ["x", "w"], ["y"], pads=[2**31, 0, 5, 0])], [ones(4, 3, 3, 3)], "Conv.*more than"),
        ([node("Conv", ["x", "w"], ["y"], pads=[40000] * 4)], [ones(4, 3, 3, 3)], "Conv.*more than"),
        ([node("Conv", ["x", "w"], ["y"], strides=[0, 0])], [ones(4, 3, 3, 3)], "Conv"),
        ([node("Conv", ["x", "w"], ["y"], group=0)], [ones(4, 3, 3, 3)], "Conv"),
        ([node("Conv", ["x", "w"], ["y"], pads="text")], [ones(4, 3, 3, 3)], "Conv"),
        ([node("Conv", ["x", "w"], ["y"], auto_pad=b"\xff\xfe")], [ones(4, 3, 3, 3)], "auto_pad.* cannot be read"),
        ([node("Pad", ["x", "i"], ["y"])], [integers(0, 0, 50000, 0, 0, 0, 50000, 0)], "Pad.*more than"),
        ([node("Pad", ["w", "i"], ["z"]), *ADDED], [ones(1, 1), integers(2**20, 2**20, 0, 0)], "Pad.*more than"),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[2**31, 2**31])], [], "MaxPool"),
        ([node("MatMul", ["w", "v"], ["z"]), *ADDED], [ones(2**18, 1), ones(1, 2**18, name="v")], "MatMul.*more than"),
        ([node("Add", ["w", "v"], ["z"]), *ADDED], [ones(2**18, 1), ones(1, 2**18, name="v")], "Add.*more than"),
        ([*doubled("x"), node("Relu", ["c39"], ["y"])], [], "Concat.*more than"),
        ([*doubled("w"), node("Add", ["x", "c39"], ["y"])], [ones(1024)], "Concat.*more than"),
        ([node("Gather", ["x", "i"], ["y"], axis=7)], [integers(99)], "Gather"),
        ([node("Concat", ["x", "x"], ["y"])], [], "Concat"),
        ([node("Add", [], ["y"])], [], "Add.*input 0 is missing"),
        ([node("Relu", ["x"], [])], [], "has no output"),
        ([node("Relu", ["x"], ["z"])], [], "no node .* gives its output"),
    ],
)
def test_graphs_that_are_too_large_or_invalid(nodes: list[Node], weights: list[Any], why: str, tmp_path: Path) -> None:
    made(tmp_path / "e.onnx", nodes, weights)
    with pytest.raises(ModelError, match=why) as caught:
        load_encoder(tmp_path / "e.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_cycles_are_refused(tmp_path: Path) -> None:
    for nodes in (
        [node("Add", ["b", "x"], ["a"]), node("Add", ["a", "x"], ["b"]), node("Relu", ["a"], ["y"])],
        [node("Add", ["y", "x"], ["y"])],
        [node("Relu", ["nothing"], ["y"])],
    ):
        made(tmp_path / "e.onnx", nodes)
        with pytest.raises(ModelError, match="before a node gives it"):
            load_encoder(tmp_path / "e.onnx")


@pytest.mark.parametrize("batch", [-1, 2**50, 10**6])
def test_impossible_batches_are_refused(batch: int, tmp_path: Path) -> None:
    made(tmp_path / "e.onnx", [node("Relu", ["x"], ["y"])], shape=(batch, 3, 112, 112))
    with pytest.raises(ModelError, match=f"takes {batch} faces at a time"):
        load_encoder(tmp_path / "e.onnx")


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "beside.bin", ""])
@pytest.mark.parametrize("place", ["weights", "node", "sparse", "function", "subgraph"])
def test_weights_in_other_files_are_refused_wherever_they_are_named(place: str, location: str, tmp_path: Path) -> None:
    path, tensor = tmp_path / "det_1.onnx", elsewhere(location)
    model = made(path, ADDED, [tensor] if place == "weights" else [])
    holder = {"node": model.graph.node, "function": model.functions.add(name="f").node if place == "function" else None}
    if place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    elif place == "subgraph":
        inner = helper.make_graph([], "inner", [], [], [tensor])
        model.graph.node.append(node("If", ["x"], ["z"], then_branch=inner))
    elif place != "weights":
        holder[place].append(node("Constant", [], ["w"], value=tensor))
    path.write_bytes(model.SerializeToString())
    for read in (load_encoder, load_model, ScrfdDetector, lambda p: encoder_from_pack(p.parent)):
        with pytest.raises(ModelError, match="weights in other files"):
            read(path)
    with pytest.raises(ModelError, match="weights in other files"):
        ImageNetwork(path, "features")


def message(*parts: tuple[int, bytes]) -> bytes:
    return b"".join(bytes([field << 3 | 2]) + varint(len(data)) + data for field, data in parts)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def test_files_with_too_many_fields_are_refused_before_parsing(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    nodes = message((7, b"\x0a\x00" * 300_000))  # empty nodes, two bytes each
    path.write_bytes(nodes)
    with pytest.raises(ModelError, match="not a readable ONNX file"):
        load_model(path)
    names = message((7, message((1, b"\x0a\x00" * 150_000))))  # empty names of inputs
    path.write_bytes(names)
    with pytest.raises(ModelError, match="holds no ONNX graph"):
        load_model(path)
    path.write_bytes(message((7, message((2, b"n" * (onnx_file.MAX_STRUCTURE + 1))))))
    with pytest.raises(ModelError, match="bytes beside its weights"):
        load_model(path)
    made(path, [node("Relu", [f"{i}"], [f"{i + 1}"]) for i in range(onnx_import.MAX_NODES + 1)])
    with pytest.raises(ModelError, match="nodes; at most"):
        load_encoder(path)
    with path.open("wb") as file:
        file.truncate(onnx_file.MAX_BYTES + 1)  # sparse
    with pytest.raises(ModelError, match="at most"):
        load_model(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x01",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\xff" * 100,
        b"\x3b",
        b"\x3a" + b"\x80" * 30,
        b"\x3a\x05\x0a",
    ],
)
def test_invalid_data_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "e.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="ONNX"):
        load_model(tmp_path / "e.onnx")


def test_weights_do_not_count_as_structure_anywhere_in_the_file(tmp_path: Path) -> None:
    """Constants in nodes and lists of numbers, as exporters write them, do not count as structure."""
    path, count = tmp_path / "e.onnx", 4096
    values = struct.pack(f"{count}f", *range(count))
    floats = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[count], float_data=list(range(count)))
    model = made(path, [node("Constant", [], ["w"], value=stated([count], values)), *ADDED], [floats])
    assert onnx_file._structure(path, path.stat().st_size) == model.ByteSize() - 2 * 4 * count
