"""ONNX graphs as frozen PyTorch modules with gradients for their input, checked against onnxruntime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from dladiff.errors import ModelError
from dladiff.faces.onnx_file import attributes_of, read_tensor
from dladiff.faces.onnx_operators import BY_VALUE, OPERATORS, Attributes, Inputs, UnsupportedError
from dladiff.faces.onnx_session import onnx_session

MAX_NODES = 10_000
"""Largest number of nodes: IResNet-100 has under 1,000."""
MAX_VALUE = 256 * 2**20
"""Largest intermediate tensor for two faces, bytes: 40 times IResNet-100's largest."""
MAX_VALUES = 8 * 2**30
"""Largest sum of all intermediate tensors for two faces, bytes. Limits the time of the parity check."""
FAULTS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, UnsupportedError)
"""Exceptions of PyTorch and the operators for invalid shapes and attributes."""
PARITY = 0.9999
"""Lowest accepted cosine to onnxruntime's output."""


class OnnxNetwork(nn.Module):
    """Runs the graph's nodes in order; weights are buffers, which are never trained."""

    def __init__(self, model: Any, path: Path) -> None:
        """Convert a loaded `onnx.ModelProto` with one input and one output. Raises ModelError."""
        super().__init__()
        graph = model.graph
        self.path = path
        self._integers: dict[str, Tensor] = {}
        self._buffer_of: dict[str, str] = {}
        for tensor in graph.initializer:
            self._keep(tensor.name, read_tensor(tensor, path))
        inputs = [value for value in graph.input if value.name not in self._constants()]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ModelError(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; one of each is needed")
        self.input_name, self.output_name = inputs[0].name, graph.output[0].name
        self.input_shape = tuple(d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim)
        if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise ModelError(f"the input of {path} is not float32")
        if len(graph.node) > MAX_NODES:
            raise ModelError(f"{path} has {len(graph.node)} nodes; at most {MAX_NODES} are read")
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
        except UnsupportedError as error:
            raise ModelError(f"{where} of {self.path}: {error}") from error

    def _add(self, index: int, node: Any) -> None:
        where = f"node {node.name or index} ({node.op_type})"
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            known = ", ".join(sorted(OPERATORS))
            raise ModelError(f"{self.path} uses operator {node.op_type} in {where}, which is not supported: {known}")
        if not node.output:
            raise ModelError(f"{where} of {self.path} has no output")
        attributes = attributes_of(node, self.path)
        names = list(node.input)
        if all(name in self._integers or name in self._buffer_of for name in names if name):
            inputs = [self._constant(name) if name else None for name in names]
            self._keep(node.output[0], self._outlined(node.op_type, where, inputs, attributes))
        else:
            self._steps.append((node.op_type, where, names, list(node.output), attributes))

    def outline(self, shape: tuple[int, ...]) -> None:
        """Check the graph by shape inference for an input of `shape`, without computing or allocating its values.

        Raises ModelError: too large values, invalid shapes, or a value that is used before it is computed.
        """
        values: dict[str, Tensor] = {**self._constants(), self.input_name: torch.empty(shape, device="meta")}
        total = 0
        for operator, where, names, outputs, attributes in self._steps:
            if absent := [name for name in names if name and name not in values]:
                raise ModelError(f"{where} of {self.path} uses {absent[0][:80]!r} before a node gives it")
            inputs = [values[name] if name else None for name in names]
            found = self._outlined(operator, where, inputs, attributes)
            total += _size(found)
            if total > MAX_VALUES:
                raise ModelError(f"{self.path} computes more than {MAX_VALUES} bytes for two faces: no face network")
            values[outputs[0]] = found
        if self.output_name not in values:
            raise ModelError(f"no node of {self.path} gives its output {self.output_name[:80]!r}")

    def _outlined(self, operator: str, where: str, inputs: Inputs, attributes: Attributes) -> Tensor:
        """Return a node's value; a meta tensor (shape only) if it depends on the network's input."""
        shapes = [
            tensor if tensor is None or (i and operator in BY_VALUE) else tensor.to("meta")
            for i, tensor in enumerate(inputs)
        ]
        try:
            found = OPERATORS[operator](shapes, attributes)
            if _size(found) > MAX_VALUE:
                shape = "x".join(map(str, found.shape))
                raise UnsupportedError(f"its value {shape} has more than {MAX_VALUE} bytes")
            if operator == "Shape" or any(tensor is not None and tensor.is_meta for tensor in inputs):
                return found
            return OPERATORS[operator](inputs, attributes)
        except FAULTS as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{where} of {self.path}: {why}") from error

    def _keep(self, name: str, tensor: Tensor) -> None:
        if tensor.is_floating_point():
            self._buffer_of[name] = f"constant_{len(self._buffer_of)}"
            self.register_buffer(self._buffer_of[name], tensor.float())
        else:  # shapes and axes stay on the CPU
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


def check_parity(network: OnnxNetwork, sample: Tensor) -> None:
    """Compare with onnxruntime on `sample` (b ...). Raises ModelError: cosine below PARITY, or a failed run."""
    batch = network.input_shape[0] or len(sample)
    if not 0 < batch <= len(sample):
        raise ModelError(f"{network.path} takes {batch} faces at a time; export it with a batch of any size")
    network.outline(tuple(sample.shape))
    try:
        session = onnx_session(network.path)
        expected = np.concatenate(
            [session.run(None, {network.input_name: part.numpy()})[0] for part in torch.split(sample, batch)]
        )
        with torch.no_grad():
            got = network(sample)
    except ModelError:
        raise
    except Exception as error:  # onnxruntime raises many classes of its own
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


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
