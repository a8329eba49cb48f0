"""VAEs of base models: the posterior of photos, at the scale and normalisation of each model's own pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from safetensors import safe_open
from torch import Tensor, nn

from dladiff.core.pixels import Images
from dladiff.diffusion.bundle import VAE, needed, vae_pins
from dladiff.diffusion.catalogue import EMBEDDED
from dladiff.diffusion.complete import incomplete_vae
from dladiff.diffusion.vae_architecture import FLUX2, KL, PATCH, QWEN, TINY, VaeArchitecture, read_vae
from dladiff.diffusion.vae_catalogue import PREFIX, locate_vae
from dladiff.errors import ModelError

PROBE = 64
"""Side of the grey picture that a loaded VAE must encode to finite latents, pixels."""


@dataclass(frozen=True)
class Latents:
    """The posterior of pictures in the space that the base model's network sees, `b c h w`."""

    mean: Tensor
    log_variance: Tensor | None
    """None for an autoencoder without a posterior (AutoencoderTiny)."""


class Vae(Protocol):
    """The VAE of a base model."""

    name: str
    factor: int
    """Side of a latent cell, pixels; sides of the pictures must be multiples of it."""
    sha256: str
    licence: str
    source: str
    revision: str

    def encode(self, images: Images) -> Latents:
        """Return the posterior of [0, 1] pictures `b 3 h w`, in the pictures' dtype, with a gradient."""

    def encode_fixed(self, images: Images, size: int) -> Latents:
        """Return the posterior, computed for `size` pictures at a time, without a gradient."""

    def recompute(self, on: bool) -> None:
        """Switch gradient checkpointing on or off, where the network has it."""


class BaseVae:
    """A VAE of diffusers' classes, frozen; its decoder is not kept."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Load a VAE, named as in `locate_vae`.

        Raises ModelError: missing, damaged, incomplete, or of an unsupported architecture.
        """
        folder = locate_vae(name)
        architecture = read_vae(folder)
        if fault := incomplete_vae(folder):
            raise ModelError(fault)
        pins = vae_pins(folder)
        network = _loaded(folder, architecture)
        self.kind, self.factor, self.device = architecture.kind, architecture.factor, device
        self.channels = architecture.channels * (PATCH**2 if architecture.kind == FLUX2 else 1)
        self.use_bf16 = device.type == "cuda"
        if self.use_bf16:
            network.bfloat16()
        self.network = network.to(device)
        if architecture.kind != QWEN:  # of 3D convolutions
            self.network.to(memory_format=torch.channels_last)
        self.offset, self.spread = _normalisation(network, architecture, device)
        label = "tiny" if folder == EMBEDDED / "vae" else pins.source or _label(folder)
        self.name = name if name.startswith(PREFIX) else label
        self.sha256, self.licence = pins.digest(), pins.licence or "see the model card"
        self.source, self.revision = pins.source, pins.revision
        with torch.no_grad():
            if not self.encode(torch.full((1, 3, PROBE, PROBE), 0.5, device=device)).mean.isfinite().all():
                raise ModelError(f"the VAE in {folder} gives numbers that are not finite; fetch it again")

    def encode(self, images: Images) -> Latents:
        """Return the posterior of [0, 1] pictures; see `Vae`. A bf16 network computes entirely in bf16."""
        inputs = images * 2 - 1
        if self.use_bf16:
            inputs = inputs.to(self.network.dtype)
        if self.kind == TINY:
            return Latents(self._normalised(self.network.encode(inputs).latents.to(images.dtype)), None)
        posterior = self.network.encode(inputs[:, :, None] if self.kind == QWEN else inputs).latent_dist
        mean, log_variance = (_flat(t.to(images.dtype), self.kind) for t in (posterior.mean, posterior.logvar))
        return Latents(self._normalised(mean), log_variance - 2 * self.spread.log())

    def encode_fixed(self, images: Images, size: int) -> Latents:
        """Return the posterior, computed for `size` pictures at a time, without a gradient."""
        with torch.no_grad():
            parts = [self.encode(part) for part in torch.split(images, size)]
        variances = [part.log_variance for part in parts if part.log_variance is not None]
        return Latents(torch.cat([part.mean for part in parts]), torch.cat(variances) if variances else None)

    def recompute(self, on: bool) -> None:
        """Switch gradient checkpointing on or off, where the network has it and it changes nothing.

        diffusers 0.42 leaves out AutoencoderTiny's change of range from [-1, 1] to [0, 1] with checkpointing.
        """
        if self.kind in (KL, FLUX2) and on != self.network.is_gradient_checkpointing:
            (self.network.enable_gradient_checkpointing if on else self.network.disable_gradient_checkpointing)()

    def _normalised(self, mean: Tensor) -> Tensor:
        return (mean - self.offset) / self.spread


@dataclass(frozen=True)
class WeightedVae:
    """A VAE whose latents are pushed, and its share of the loss."""

    vae: Vae
    weight: float


def load_vaes(names: Sequence[str], weights: Sequence[float], device: torch.device) -> list[WeightedVae]:
    """Load VAEs; the weights, by default equal, are scaled to a sum of 1. Raises ModelError."""
    given = weights or (1.0,) * len(names)
    return [WeightedVae(BaseVae(name, device), w / sum(given)) for name, w in zip(names, given, strict=True)]


def _loaded(folder: Path, architecture: VaeArchitecture) -> Any:
    """Return the network with its decoder left out, frozen, in fp32. Raises ModelError."""
    kind = getattr(diffusers, architecture.kind)
    try:
        compare(kind, folder)
        network, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except ModelError:
        raise
    except Exception as error:  # diffusers and safetensors raise their own classes for damaged files
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the VAE in {folder} cannot be loaded: {why}") from error
    if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ModelError(f"the VAE in {folder} lacks {len(lacking)} tensors of its configuration; fetch it again")
    network.decoder = nn.Identity()
    return network.eval().requires_grad_(False).float()


def compare(kind: Any, folder: Path, part: str = VAE) -> None:
    """Raise ModelError if the weights' names or shapes in a part's folder are not those of the configuration.

    The network is built without memory first: a configuration may ask for more than its weights hold.
    """
    with torch.device("meta"):
        built = kind.from_config(kind.load_config(folder, local_files_only=True)).state_dict()
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if needed(f"{part}{file.name}"):
            with safe_open(file, "pt") as weights:
                found |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}
    wanted = {name: tuple(tensor.shape) for name, tensor in built.items() if not name.endswith("num_batches_tracked")}
    found = {_current(name): shape for name, shape in found.items()}
    if lacking := [name for name, shape in wanted.items() if _element_count(found.get(name)) != _element_count(shape)]:
        raise ModelError(
            f"the {'VAE' if part == VAE else 'network'} in {folder} lacks {len(lacking)} tensors of its configuration, "
            f"{lacking[0]} first; fetch it again"
        )


def _current(name: str) -> str:
    """Return a tensor's present name: SD's VAEs were published with earlier names of their attention."""
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        name = name.replace(old, new)
    return name


def _element_count(shape: tuple[int, ...] | None) -> int:
    """Return the number of a tensor's elements; -1 without a tensor. SD's attention was published as 1 x 1 kernels."""
    return -1 if shape is None else int(torch.Size(shape).numel())


def _normalisation(network: Any, architecture: VaeArchitecture, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what a pipeline subtracts from the latents and then divides them by, `1 c 1 1` or of no dimension."""
    config = network.config
    if architecture.kind == FLUX2:
        mean, variance = network.bn.running_mean.float(), network.bn.running_var.float()
        spread = (variance + config.batch_norm_eps).sqrt()
        return mean.view(1, -1, 1, 1).to(device), spread.view(1, -1, 1, 1).to(device)
    scaling = 1.0 if architecture.kind == QWEN else float(config.scaling_factor)
    means, spreads = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if means is not None and spreads is not None:
        offset, spread = (torch.tensor(values, dtype=torch.float32, device=device) for values in (means, spreads))
        return offset.view(1, -1, 1, 1), spread.view(1, -1, 1, 1) / scaling
    shift = float(getattr(config, "shift_factor", None) or 0.0)
    return torch.tensor(shift, device=device), torch.tensor(1 / scaling, device=device)


def _flat(latents: Tensor, kind: str) -> Tensor:
    """Return latents `b c h w`: Qwen-Image's without their one frame, FLUX.2's as patches of 2 x 2 cells."""
    if kind == QWEN:
        return latents[:, :, 0]
    if kind != FLUX2:
        return latents
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, height // PATCH, width // PATCH)


def _label(folder: Path) -> str:
    return folder.parent.name if folder.name == "vae" else folder.name
