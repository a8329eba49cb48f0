"""A trained remover of perturbations: a small residual U-Net, its file, and its use on photos of any size.

LightShed (Foerster et al. 2025) trains an autoencoder to reproduce what a protection adds, and subtracts it. Here a
U-Net predicts what has to be added to remove it.
"""

import math
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from dladiff.core.pixels import Images
from dladiff.errors import ModelError

KIND = "dladiff remover 1"
"""Kind of file, in its metadata."""
WIDTHS = (24, 48, 96)
"""Channels at full, half and quarter size: 0.6 million parameters in all."""
FACTOR = 4
"""Sides of the network's input are multiples of it, pixels."""
MARGIN, TILE = 48, 256
"""Pixels read around a tile (the receptive field reaches 42), and side of a tile, which bounds memory; multiples of
FACTOR."""
MAX_BYTES = 64 * 2**20
"""Largest file read."""


class Block(nn.Module):
    """Two 3 x 3 convolutions, added to their input; without normalisation, which would hide faint patterns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map `b c h w` to the same shape."""
        result: Tensor = x + self.second(functional.silu(self.first(functional.silu(x))))
        return result


class Remover(nn.Module):
    """Maps protected photos `b 3 h w` in [0, 1] to what has to be added to remove the perturbation."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTHS
        self.into = nn.Conv2d(3, a, 3, padding=1)
        self.down1, self.down2 = nn.Conv2d(a, b, 4, 2, 1), nn.Conv2d(b, c, 4, 2, 1)
        self.up2, self.up1 = nn.Conv2d(c, 4 * b, 1), nn.Conv2d(b, 4 * a, 1)
        self.left1, self.left2 = Block(a), Block(b)
        self.bottom = nn.Sequential(Block(c), Block(c))
        self.right2, self.right1 = Block(b), Block(a)
        self.out = nn.Conv2d(a, 3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Images) -> Tensor:
        """Return the correction `b 3 h w`; h and w are multiples of FACTOR."""
        full = self.left1(self.into(x * 2 - 1))
        half = self.left2(self.down1(full))
        deep = self.bottom(self.down2(half))
        half = self.right2(half + functional.pixel_shuffle(self.up2(deep), 2))
        full = self.right1(full + functional.pixel_shuffle(self.up1(half), 2))
        result: Tensor = self.out(full)
        return result


def fresh(seed: int) -> Remover:
    """Return a network with random weights of this seed; it corrects nothing yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Remover()


def removed(network: nn.Module, x: Images) -> Images:
    """Return photos `b 3 h w` of any size without the perturbation, in [0, 1]: tile by tile, as if whole."""
    height, width = x.shape[-2:]
    padded = functional.pad(x, (0, -width % FACTOR, 0, -height % FACTOR), mode="replicate")
    out = torch.empty_like(padded)
    rows, columns = padded.shape[-2:]
    with torch.no_grad():
        for top in range(0, rows, TILE):
            for left in range(0, columns, TILE):
                bottom, right = min(rows, top + TILE), min(columns, left + TILE)
                y, x0 = max(0, top - MARGIN), max(0, left - MARGIN)
                part = padded[..., y : bottom + MARGIN, x0 : right + MARGIN]
                inner = (slice(top - y, bottom - y), slice(left - x0, right - x0))
                out[..., top:bottom, left:right] = (part + network(part))[..., inner[0], inner[1]]
    return out[..., :height, :width].clamp(0, 1)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file: whole or not at all. With one entry of `metadata`, its bytes depend on nothing else."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_remover(path: Path) -> Remover:
    """Return the network of a file that the training wrote, frozen. Raises ModelError: missing, damaged or another."""
    if not path.is_file():
        raise ModelError(
            f"no remover at {path}: train one (python -m dladiff.training.remover --help) and name its file"
        )
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path} is larger than {MAX_BYTES // 2**20} MB: no remover")
    try:
        with safe_open(path, "pt") as file:
            kind = (file.metadata() or {}).get("kind")
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # safetensors raises classes of its own
        raise ModelError(f"{path} is not a readable safetensors file: {str(error).splitlines()[0]}") from error
    network = fresh(0)
    own = network.state_dict()
    fits = weights.keys() == own.keys() and all(weights[name].shape == own[name].shape for name in own)
    if kind != KIND or not fits:
        raise ModelError(
            f"{path} holds no remover of this version: train one (python -m dladiff.training.remover --help)"
        )
    if not all(math.isfinite(float(tensor.abs().max())) for tensor in weights.values()):
        raise ModelError(f"{path} holds numbers that are not finite; train it again")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
