"""The readings of identity adapters as identity encoders: from a cut of the photo to what the adapter gets.

The cosine of two results is the mean cosine of their tokens, of each output by itself and then over the outputs.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dladiff.core.pixels import Images
from dladiff.diffusion.bundle import file_sha256
from dladiff.errors import ModelError
from dladiff.faces.cuts import FaceCut, PhotoCut
from dladiff.faces.encoder import IdentityEncoder, encoder_from_pack, load_encoder
from dladiff.faces.networks.bisenet import FaceParsing
from dladiff.faces.networks.eva02 import Eva02
from dladiff.faces.networks.improved_resnet import ImprovedResnet, structure_and_identity
from dladiff.faces.networks.state import built, read_state
from dladiff.faces.towers import CLIP_MEAN, CLIP_STD, Tower, folder_digest, load_model, load_photomaker
from dladiff.faces.weights import WEIGHTS, located
from dladiff.settings.adapters import PREFIX, Reading, reading_of

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (BT.601)."""
PULID_BLOCKS = (4, 8, 12, 16, 20)
"""Blocks of EVA02-CLIP before which PuLID takes the tokens."""
VISUAL = "visual."
"""Start of the names of the vision tower's tensors in EVA-CLIP's file."""


class ReadingEncoder(IdentityEncoder):
    """One reading of an adapter."""

    def __init__(
        self, network: nn.Module, name: str, sha256: str, reading: Reading, cut: FaceCut | PhotoCut,
        parsing: FaceParsing | None = None,
    ) -> None:  # fmt: skip
        """`network`: from pictures in [0, 1], as the adapter orders their colours, to a list of tokens `b t c`."""
        super().__init__(network, name, sha256, WEIGHTS[reading.weights].licence, mean=0, std=1, crop=cut.side)
        self.cut, self.spec, self.reading = cut, reading, name
        self.parsing = parsing
        self.requires_grad_(False)

    def pictures(self, crops: Images) -> Images:
        """Return what the network gets: in the adapter's colours, on white where it masks, and at its size."""
        background = None if self.parsing is None else self.parsing.background(crops)
        if self.spec.colour == "grey":
            crops = (crops * crops.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True).expand(-1, 3, -1, -1)
        elif self.spec.colour == "bgr":
            crops = crops.flip(1)
        if background is not None:
            crops = torch.where(background, 1.0, crops)
        if not self.spec.resized:
            return crops
        cubic, size = self.spec.interpolation == "bicubic", (self.spec.resized,) * 2
        return functional.interpolate(crops, size, mode=self.spec.interpolation, antialias=cubic, align_corners=False)

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Return unit-length vectors whose product is the mean cosine of tokens, for cuts in [0, 1]."""
        return unit_tokens(self.network(self.pictures(crops)))


def unit_tokens(outputs: Sequence[Float[Tensor, "b t c"]]) -> Float[Tensor, "b d"]:
    """Return all tokens in one vector of unit length; each output has the same share, and each of its tokens."""
    shares = [(out.shape[1] * len(outputs)) ** 0.5 for out in outputs]
    return torch.cat(
        [(functional.normalize(out, dim=2) / s).flatten(1) for out, s in zip(outputs, shares, strict=True)], 1
    )


class Recogniser(nn.Module):
    """A residual recognition network for pictures in [0, 1]."""

    def __init__(self, network: ImprovedResnet, maps: bool) -> None:
        """`maps`: read feature maps instead of the embedding."""
        super().__init__()
        self.network, self.maps = network, maps

    def forward(self, pictures: Float[Tensor, "b 3 112 112"]) -> list[Tensor]:
        """Return the embedding as one token, or the tokens of the feature maps."""
        scaled = (pictures - 0.5) / 0.5
        return structure_and_identity(self.network.features(scaled)) if self.maps else [self.network(scaled)[:, None]]


class EvaReader(nn.Module):
    """EVA02-CLIP for pictures in [0, 1]."""

    def __init__(self, network: Eva02) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    def forward(self, pictures: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """Return the projected vector as one token, and the tokens before PuLID's blocks."""
        normalised = (pictures - self.get_buffer("mean")) / self.get_buffer("std")
        vector, hidden = self.network(normalised, PULID_BLOCKS)
        return [vector[:, None], *hidden]


def load_reading(name: str) -> IdentityEncoder:
    """Return the encoder of `adapter:ADAPTER.READING`. Raises ModelError: weights are missing or are others."""
    reading, short = reading_of(name), name.removeprefix(PREFIX)
    source = located(reading.weights)
    if reading.kind == "pack":
        encoder = load_encoder(encoder_from_pack(source), short)
        encoder.licence = WEIGHTS[reading.weights].licence
        return encoder
    parsing, network = None, _network(source, reading)
    if reading.mask:
        file = located(reading.mask)
        loaded = built(file, "facexlib's BiSeNet", FaceParsing, read_state(file))
        assert isinstance(loaded, FaceParsing)
        parsing, mask = loaded, file_sha256(file)
    sha256 = folder_digest(source) if source.is_dir() else file_sha256(source)
    if parsing is not None:
        sha256 = hashlib.sha256(f"{sha256}\0{mask}".encode()).hexdigest()
    cut = PhotoCut(reading.side, reading.cut == "photo crop")
    face = FaceCut(reading.side, reading.cut == "ffhq")
    return ReadingEncoder(network, short, sha256, reading, cut if reading.cut.startswith("photo") else face, parsing)


def _network(source: Path, reading: Reading) -> nn.Module:
    """Return the network of a reading. Raises ModelError: other weights, or of another input size."""
    side = reading.resized or reading.side
    if reading.kind in ("clip", "siglip", "photomaker"):
        model = load_photomaker(source) if reading.kind == "photomaker" else load_model(source, reading.kind)
        tower = Tower(model, reading)
        return _of_side(tower, tower.side, side, source)
    if reading.kind == "eva02":
        eva = built(source, "EVA02-CLIP", Eva02, read_state(source, VISUAL))
        assert isinstance(eva, Eva02)
        if len(eva.blocks) <= max(PULID_BLOCKS):
            raise ModelError(f"{source} holds {len(eva.blocks)} blocks; PuLID reads before block {max(PULID_BLOCKS)}")
        return _of_side(EvaReader(eva), eva.side, side, source)
    squeezed = reading.kind == "ir_se"
    what = "facexlib's IR-SE50" if squeezed else "CurricularFace's IR-101"
    recogniser = built(source, what, lambda state: ImprovedResnet(state, squeezed), read_state(source))
    assert isinstance(recogniser, ImprovedResnet)
    return Recogniser(recogniser, reading.output == "features")


def _of_side(network: nn.Module, own: int, side: int, source: Path) -> nn.Module:
    if own != side:
        raise ModelError(f"{source} takes pictures of {own} px, the adapter's network of {side} px; fetch that one")
    return network
