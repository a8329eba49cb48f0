"""An ONNX network of several outputs in PyTorch on a device, with the `run` of an onnxruntime session."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from dladiff.faces.onnx_import import OnnxNetwork

ALL = "dladiff_all_outputs"


class TorchSession:
    """Runs a network whose outputs are maps of one size."""

    def __init__(self, model: Any, path: Path, device: torch.device) -> None:
        """Convert a loaded `onnx.ModelProto`, which is changed: its outputs become one. Raises ModelError."""
        self.device = device
        self.channels = {o.name: o.type.tensor_type.shape.dim[1].dim_value for o in model.graph.output}
        model.graph.node.append(onnx.helper.make_node("Concat", list(self.channels), [ALL], axis=1))
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(ALL, onnx.TensorProto.FLOAT, None))
        self.network = OnnxNetwork(model, path).to(device)

    def run(self, names: Sequence[str], inputs: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the named outputs for a batch of images."""
        (images,) = inputs.values()
        with torch.inference_mode():
            maps = self.network(torch.from_numpy(images).to(self.device)).cpu()
        found = dict(zip(self.channels, maps.split(list(self.channels.values()), dim=1), strict=True))
        return [found[name].numpy() for name in names]
