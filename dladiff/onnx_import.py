"""An ONNX graph as a frozen PyTorch module, so that gradients reach its input; checked against onnxruntime at load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from dladiff.errors import ModelError
from dladiff.onnx_operators import OPERATORS, Attributes, RefusedError
from dladiff.onnx_session import onnx_session

MAX_BYTES = 1_000_000_000
"""Largest file read: the largest known recognition model is a quarter of it."""
PARITY = 0.9999
"""Lowest cosine to onnxruntime's output that is still the same network."""


class OnnxNetwork(nn.Module):
    """The graph's nodes run in order; weights are buffers, so that nothing of them is ever trained."""

    def __init__(self, model: Any, path: Path) -> None:
        """Read a loaded `onnx.ModelProto` of one input and one output. Raises ModelError."""
        super().__init__()
        graph = model.graph
        self.path = path
        self._integers: dict[str, Tensor] = {}
        self._buffer_of: dict[str, str] = {}
        for tensor in graph.initializer:
            self._keep(tensor.name, _tensor(tensor, path))
        inputs = [value for value in graph.input if value.name not in self._constants()]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ModelError(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; one of each is needed")
        self.input_name, self.output_name = inputs[0].name, graph.output[0].name
        self.input_shape = tuple(d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim)
        if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise ModelError(f"the input of {path} is not float32")
        self._steps: list[tuple[str, str, list[str], list[str], Attributes]] = []
        for index, node in enumerate(graph.node):
            self._add(index, node)
        self._drop_after = self._last_uses()
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the graph's output."""
        values: dict[str, Tensor] = {**self._constants(), self.input_name: inputs}
        for (operator, where, names, outputs, attributes), unused in zip(self._steps, self._drop_after, strict=True):
            values[outputs[0]] = self._compute(operator, where, values, names, attributes)
            for name in unused:
                values.pop(name, None)
        return values[self.output_name]

    def _compute(
        self, operator: str, where: str, values: Mapping[str, Tensor], names: list[str], attributes: Attributes
    ) -> Tensor:
        try:
            return OPERATORS[operator]([values[name] if name else None for name in names], attributes)
        except RefusedError as error:
            raise ModelError(f"{where} of {self.path}: {error}") from error

    def _add(self, index: int, node: Any) -> None:
        where = f"node {node.name or index} ({node.op_type})"
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            known = ", ".join(sorted(OPERATORS))
            raise ModelError(f"{self.path} uses operator {node.op_type} in {where}, which is not supported: {known}")
        attributes = {a.name: _attribute(a, self.path) for a in node.attribute}
        names = list(node.input)
        if all(name in self._integers or name in self._buffer_of for name in names if name):
            constants = {name: self._constant(name) for name in names if name}
            self._keep(node.output[0], self._compute(node.op_type, where, constants, names, attributes))
        else:
            self._steps.append((node.op_type, where, names, list(node.output), attributes))

    def _keep(self, name: str, tensor: Tensor) -> None:
        if tensor.is_floating_point():
            self._buffer_of[name] = f"constant_{len(self._buffer_of)}"
            self.register_buffer(self._buffer_of[name], tensor.float())
        else:  # shapes and axes stay on the host
            self._integers[name] = tensor

    def _constant(self, name: str) -> Tensor:
        return self._integers[name] if name in self._integers else self.get_buffer(self._buffer_of[name])

    def _constants(self) -> dict[str, Tensor]:
        return {name: self._constant(name) for name in (*self._integers, *self._buffer_of)}

    def _last_uses(self) -> list[list[str]]:
        seen = {self.output_name}
        unused: list[list[str]] = []
        for _, _, names, _, _ in reversed(self._steps):
            fresh = [name for name in dict.fromkeys(names) if name not in seen]
            seen.update(fresh)
            unused.append(fresh)
        return unused[::-1]


def load_model(path: Path) -> Any:
    """Read an ONNX file. Raises ModelError: missing, too large, damaged, or with weights in other files."""
    if not path.is_file():
        raise ModelError(f"no model at {path}: name an ONNX file")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path} is {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises a class of its own
        raise ModelError(f"{path} is not a readable ONNX file") from error
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{path} holds no ONNX graph")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ModelError(f"{path} keeps weights in other files; save it as one file (onnx.save_model does by default)")
    return model


def check_parity(network: OnnxNetwork, sample: Tensor) -> None:
    """Compare with onnxruntime on `sample` (b ...). Raises ModelError below cosine 0.9999 or when either cannot run."""
    batch = network.input_shape[0] or len(sample)
    try:
        session = onnx_session(network.path)
        expected = np.concatenate(
            [session.run(None, {network.input_name: part.numpy()})[0] for part in torch.split(sample, batch)]
        )
        with torch.no_grad():
            got = network(sample)
    except ModelError:
        raise
    except Exception as error:  # onnxruntime has a class of its own for every kind of fault
        raise ModelError(f"{network.path} cannot be run: {str(error).splitlines()[0]}") from error
    if got.shape != expected.shape:
        shapes = " and ".join("x".join(map(str, found.shape)) for found in (got, expected))
        raise ModelError(
            f"{network.path} gives {shapes} for {len(sample)} faces, as PyTorch and in onnxruntime: its batch is "
            "fixed; export it with a batch of any size"
        )
    cosine = functional.cosine_similarity(got.flatten(1).double(), torch.from_numpy(expected).flatten(1).double())
    if not bool((cosine >= PARITY).all()):
        raise ModelError(f"{network.path} as PyTorch differs from onnxruntime: cosine {cosine.min():.5f}")


def _tensor(proto: Any, path: Path) -> Tensor:
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(f"{path} keeps weights in other files; save it as one file")
    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def _attribute(proto: Any, path: Path) -> Any:
    if proto.type == onnx.AttributeProto.TENSOR:
        return _tensor(proto.t, path)
    value = onnx.helper.get_attribute_value(proto)
    return value.decode() if isinstance(value, bytes) else value
