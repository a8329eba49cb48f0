"""Identity encoders: differentiable maps from an aligned face to a unit vector, loaded from 112 x 112 ONNX models."""

from pathlib import Path
from typing import Any

import onnx
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dladiff.diffusion.bundle import file_sha256
from dladiff.errors import ModelError
from dladiff.faces.cuts import Cut, FaceCut
from dladiff.faces.detect import CROP
from dladiff.faces.onnx_file import MAX_BYTES, load_model
from dladiff.faces.onnx_import import OnnxNetwork, check_parity

UNKNOWN_LICENCE = "unknown: see the pack's own licence"


class IdentityEncoder(nn.Module):
    """A frozen recognition network and its input scaling."""

    reading = ""
    """What an adapter reads with it: one file may serve several readings. Empty for an encoder that is named itself."""

    def __init__(
        self, network: nn.Module, name: str, sha256: str, licence: str, *, mean: float, std: float, crop: int = CROP
    ) -> None:
        """`mean` and `std`: InsightFace's input scaling, for 0..255. `crop`: side of the aligned face, pixels."""
        super().__init__()
        self.network, self.name, self.sha256, self.licence = network, name, sha256, licence
        self.mean, self.std, self.crop = mean, std, crop
        self.cut: Cut = FaceCut(crop)
        self.eval().requires_grad_(False)

    def scaled(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
        """Return RGB crops in [0, 1] converted to the network's input scale."""
        return (crops * 255 - self.mean) / self.std

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Return the unit-length embeddings of RGB crops in [0, 1], `crop` x `crop` pixels."""
        return functional.normalize(self.network(self.scaled(crops)).flatten(1), dim=1)


def load_encoder(path: Path | str, name: str | None = None) -> IdentityEncoder:
    """Return the encoder of an ONNX recognition model, checked against onnxruntime.

    Raises ModelError: not a 112 x 112 RGB network with one input and one output, an unsupported operator, or an output
    that differs from onnxruntime's.
    """
    path = Path(path)
    model = load_model(path)
    network = OnnxNetwork(model, path)
    if network.input_shape[1:] != (3, CROP, CROP):
        shape = "x".join(str(size or "?") for size in network.input_shape)
        raise ModelError(f"the input of {path} is {shape}; an identity encoder takes Nx3x{CROP}x{CROP}")
    licences = [p.value for p in model.metadata_props if p.key in ("licence", "license")]
    mean, std = (0.0, 1.0) if scales_itself(model) else (127.5, 127.5)
    encoder = IdentityEncoder(
        network, name or path.stem, file_sha256(path), next(iter(licences), UNKNOWN_LICENCE), mean=mean, std=std
    )
    sample = torch.rand(2, 3, CROP, CROP, generator=torch.Generator().manual_seed(0))
    check_parity(network, encoder.scaled(sample))
    return encoder


def scales_itself(model: Any) -> bool:
    """Return whether the graph begins with input scaling: a subtraction and a multiplication in the first eight nodes.

    The rule is InsightFace's, by node names, for models exported from MXNet.
    """
    names = [node.name for node in model.graph.node[:8]]
    return any(n.startswith(("Sub", "_minus")) for n in names) and any(n.startswith(("Mul", "_mul")) for n in names)


def encoder_from_pack(folder: Path | str) -> Path:
    """Return the path of an InsightFace pack's recognition model: one input Nx3x112x112, one output.

    Raises ModelError if there is none, or more than one.
    """

    def fits(graph: Any) -> bool:
        shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim][1:] for value in _inputs(graph)]
        return len(graph.output) == 1 and shapes == [[3, CROP, CROP]]

    return _only(
        Path(folder), fits, "recognition model (one input Nx3x112x112, one output; w600k_r50.onnx in buffalo_l)"
    )


def detector_from_pack(folder: Path | str) -> Path:
    """Return the path of an InsightFace pack's SCRFD model: five outputs or more.

    Raises ModelError if there is none, or more than one.
    """
    return _only(Path(folder), lambda g: len(g.output) >= 5, "detection model (det_10g.onnx in buffalo_l)")


def _only(folder: Path, fits: Any, what: str) -> Path:
    if not folder.is_dir():
        raise ModelError(f"no InsightFace pack folder at {folder}")
    small = [path for path in sorted(folder.glob("*.onnx")) if path.stat().st_size <= MAX_BYTES]
    found = [path for path in small if fits(load_model(path).graph)]
    if not found:
        raise ModelError(f"{folder} holds no {what}: unpack a whole InsightFace pack there")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(f"{folder} holds more than one {what}: {names}; name the file instead of the folder")
    return found[0]


def _inputs(graph: Any) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]
