"""The latent layer on real latent spaces: what is pushed, how far each space moves, what it costs.

The small autoencoders of DLADIFF_ASSETS/taesd stand for the VAEs of SD 1 and 2, SDXL, SD 3, FLUX.1 and FLUX.2. Each
row protects the same portraits by the latent layer alone, under the visibility budget, in the product's own views. A
shift is the mean square of the change of a view's latents over their variance, in the stored photo and in fp32.

    python -m tests.acceptance.latents PHOTO... [--steps N] [--push SPACES]... [--variants] [--save DIR]
    python -m tests.acceptance.latents PHOTO... --log-variance       # the tiny model's VAE, which has a posterior
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn
from dladiff.core.pixels import to_float
from dladiff.diffusion.vae import BaseVae, Latents, Vae, WeightedVae
from dladiff.faces.detect import CenterFaceDetector
from dladiff.layers import joint
from dladiff.layers.latents import SMALLEST, LatentShift
from dladiff.photo import Work, within_budget
from dladiff.protect import Models, protect
from dladiff.settings.schema import MethodConfig, method_config
from tests.support.vae_layouts import write_tiny

SPACES = {"taesd": "SD 1, 2", "taesdxl": "SDXL", "taesd3": "SD 3", "taef1": "FLUX.1", "taef2": "FLUX.2"}
CPU, SEED = torch.device("cpu"), 0
SQUARE = 32
"""Side of the squares of the target pattern, pixels."""
AIM = 1.0
"""Weight of the cosine to the shared direction beside the logarithm of the shift."""


class MiddleBlock(nn.Module):
    """A block of the FLUX.2 autoencoder's last level: a normalised branch before its convolutions."""

    def __init__(self, weights: dict[str, Tensor], number: int) -> None:
        super().__init__()
        self.weights = {
            name.removeprefix(f"{number}."): w for name, w in weights.items() if name.startswith(f"{number}.")
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the features after the block."""
        w = {name: value.to(x.dtype) for name, value in self.weights.items()}
        if "pool.0.weight" in w:
            inner = nn.functional.conv2d(x, w["pool.0.weight"])
            inner = nn.functional.group_norm(inner, 4, w["pool.1.weight"], w["pool.1.bias"]).relu()
            x = x + nn.functional.conv2d(inner, w["pool.3.weight"])
        inner = x
        for part in (0, 2, 4):
            inner = nn.functional.conv2d(inner, w[f"conv.{part}.weight"], w[f"conv.{part}.bias"], padding=1)
            inner = inner.relu() if part < 4 else inner
        return (inner + x).relu()


class Flux2Small(BaseVae):
    """The small autoencoder of FLUX.2, which no class of diffusers describes; it takes [0, 1]."""

    def __init__(self, file: Path) -> None:
        weights = load_file(file)
        layers: list[nn.Module] = []
        for number in range(1 + max(int(name.partition(".")[0]) for name in weights)):
            kernel, bias = weights.get(f"{number}.weight"), weights.get(f"{number}.bias")
            if kernel is None:
                layers.append(MiddleBlock(weights, number))
                continue
            stride = 2 if bias is None else 1
            conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, stride, 1, bias=bias is not None)
            conv.load_state_dict({"weight": kernel} | ({} if bias is None else {"bias": bias}))
            layers.append(conv)
        self.network = nn.Sequential(*layers).eval().requires_grad_(False)
        self.name, self.factor = "taef2", 8

    def encode(self, images: Tensor) -> Latents:
        """Return the latents of [0, 1] pictures."""
        return Latents(self.network(images), None)

    def recompute(self, on: bool) -> None:
        """Do nothing: there is no checkpointing."""


class Fast:
    """A VAE that computes in bf16 by autocast, three times as fast on this CPU; shifts are measured without it."""

    def __init__(self, vae: BaseVae) -> None:
        self.vae, self.name = vae, vae.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def encode(self, images: Tensor) -> Latents:
        """Return the posterior of [0, 1] pictures."""
        with torch.autocast("cpu", torch.bfloat16):
            found = self.vae.encode(images)
        return Latents(found.mean.to(images.dtype), found.log_variance)

    def encode_fixed(self, images: Tensor, size: int) -> Latents:
        """Return the posterior without a gradient, `size` pictures at a time."""
        with torch.no_grad():
            means = [self.encode(part).mean for part in torch.split(images, size)]
        return Latents(torch.cat(means), None)


class Targeted(LatentShift):
    """Moves the latents towards those of a chequered pattern: minus the logarithm of the nearness."""

    def shift(self, latents: Latents, number: int, part: slice) -> Tensor:
        """Return the inverse of the squared distance to the pattern's latents, over the latents' variance."""
        side = self.clean.shape[-1]
        tiles = (torch.arange(side) // SQUARE)[:, None] + torch.arange(side) // SQUARE
        pattern = (tiles % 2).to(self.clean).expand(1, 3, side, side)
        target = self.vaes[number].vae.encode_fixed(pattern, 1).mean
        distance = (latents.mean - target).square().mean((1, 2, 3)) / self.scales[number][0][part]
        return 1 / distance


class Shared(LatentShift):
    """Moves the latents of all photos of a person in one direction (after CAP, arXiv 2504.12747), and far."""

    def shift(self, latents: Latents, number: int, part: slice) -> Tensor:
        """Return the squared shift, times the exponential of its cosine to a fixed direction in latent space."""
        moved = latents.mean - self.posteriors[number].mean[part]
        generator = torch.Generator().manual_seed(number)
        coarse = torch.randn(1, moved.shape[1], 8, 8, generator=generator)
        direction = nn.functional.interpolate(coarse, moved.shape[-2:], mode="bilinear").to(moved)
        cosine = nn.functional.cosine_similarity(moved.flatten(1), direction.flatten(1).expand(len(moved), -1))
        return (super().shift(latents, number, part) + SMALLEST) * torch.exp(AIM * cosine)


VARIANTS: dict[str, type[LatentShift]] = {"untargeted": LatentShift, "targeted": Targeted, "one direction": Shared}


def spaces(folder: Path, home: Path) -> dict[str, BaseVae]:
    """Return the small autoencoders by name; `folder`: where those in the layout of diffusers are written."""
    found: dict[str, BaseVae] = {}
    for name in SPACES:
        encoder = home / f"{name}_encoder.safetensors"
        if name == "taef2":
            found[name] = Flux2Small(encoder)
        else:
            found[name] = BaseVae(str(write_tiny(folder / name, encoder, home / f"{name}_decoder.safetensors")), CPU)
    return found


def moved(vae: BaseVae, before: Tensor, after: Tensor) -> Tensor:
    """Return the change of the latents of views, over the root of the variance of each view's own latents."""
    means = [vae.encode_fixed(views, 1).mean for views in (before, after)]
    return (means[1] - means[0]) / means[0].var((1, 2, 3), correction=0, keepdim=True).sqrt()


def views_of(pixels: Pixels, work: Work, resolution: int) -> Tensor:
    """Return the product's views of a photo."""
    return torch.cat([view.read(to_float(pixels), resolution) for view in work.views])


def row(
    photo: Pixels, pushed: Sequence[BaseVae], known: dict[str, BaseVae], config: MethodConfig, models: Models
) -> tuple[dict[str, float], Pixels]:
    """Protect one photo by pushing some spaces; return the figures and the pixels."""
    fast: list[Vae] = [Fast(vae) for vae in pushed]
    chosen = Models(None, [], [], models.detector, CPU, [WeightedVae(vae, 1 / len(fast)) for vae in fast])
    start = time.process_time()
    (out,) = protect([PhotoIn(key="a", pixels=photo)], [], chosen, config, SEED).photos
    spent = time.process_time() - start
    return figures(photo, out.pixels, known, config, models) | {
        "SSIMULACRA2": out.ssimulacra2, "face": out.ssimulacra2_face, "PSNR": out.psnr, "seconds": spent,
    }, out.pixels  # fmt: skip


def figures(
    before: Pixels, after: Pixels, known: dict[str, BaseVae], config: MethodConfig, models: Models
) -> dict[str, float]:
    """Return the squared relative shift of each space, mean over the views."""
    work = Work.of(PhotoIn(key="a", pixels=before), models.detector, CPU, config)
    a, b = (views_of(pixels, work, config.resolution) for pixels in (before, after))
    return {SPACES.get(name, name): float(moved(vae, a, b).square().mean()) for name, vae in known.items()}


def noise(photo: Pixels, config: MethodConfig, models: Models) -> Pixels:
    """Return the photo with random signs, scaled down to the same visibility."""
    work = Work.of(PhotoIn(key="a", pixels=photo), models.detector, CPU, config)
    signs = torch.randint(0, 2, work.original().shape, generator=torch.Generator().manual_seed(SEED)) * 2.0 - 1
    return work.perturbed(within_budget(work, 12 / 255 * signs, config.visibility))


def log_variance(photos: Sequence[Pixels], steps: int) -> None:
    """Print a row for each weight of the log variance, with the tiny model's VAE at its 128 px."""
    vae = BaseVae("embedded", CPU)
    models = Models(None, [], [], CenterFaceDetector(), CPU, [WeightedVae(vae, 1.0)])
    print(
        "| log variance | shift of the mean | of the log variance | SSIMULACRA2 | face | seconds |\n" + "|---" * 6 + "|"
    )
    for weight in (0.0, 0.3, 1.0):
        found = []
        for photo in photos:
            settings = {"layers": "finetuning", "joint": {"steps": steps, "log_variance": weight}}
            config, start = method_config("tiny", None, settings), time.process_time()
            (out,) = protect([PhotoIn(key="a", pixels=photo)], [], models, config, SEED).photos
            spent = time.process_time() - start
            work = Work.of(PhotoIn(key="a", pixels=photo), models.detector, CPU, config)
            ends = [vae.encode_fixed(views_of(p, work, config.resolution), 1) for p in (photo, out.pixels)]
            pairs = [[e.mean for e in ends], [e.log_variance for e in ends if e.log_variance is not None]]
            shifts = [
                float(((b - a).square().mean((1, 2, 3)) / a.var((1, 2, 3), correction=0)).mean()) for a, b in pairs
            ]
            found.append([*shifts, out.ssimulacra2, out.ssimulacra2_face, spent])
        print(f"| {weight} | " + " | ".join(f"{value:.3f}" for value in np.mean(found, 0)) + " |", flush=True)


def default_pushes() -> list[tuple[str, ...]]:
    """Return each space alone, all of them, and all but each."""
    names = (*SPACES,)
    return [*((name,) for name in names), names, *(tuple(n for n in names if n != name) for name in names)]


def main() -> None:
    """Print a Markdown row for each push: means over the photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--step-size", type=float, default=1 / 255)
    parser.add_argument("--smoothing", type=float, default=0.0, help="blur of each step, cells")
    parser.add_argument("--side", type=int, default=512, help="photos are shrunk to it; it is the working resolution")
    parser.add_argument("--push", action="append", help="spaces with commas between; default: each, all but each, all")
    parser.add_argument("--variants", action="store_true", help="compare the losses, on the spaces of --push")
    parser.add_argument("--log-variance", action="store_true")
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    photos = [
        np.array(Image.open(path).convert("RGB").resize((given.side, given.side), Image.Resampling.LANCZOS))
        for path in given.photos
    ]
    if given.log_variance:
        return log_variance(photos, given.steps)
    settings: dict[str, Any] = {"layers": "finetuning", "resolution": given.side, "finetuning": {"batch_photos": 1}}
    joint_settings = {"steps": given.steps, "step_size": given.step_size, "smoothing": given.smoothing}
    config = method_config("sd21", None, settings | {"joint": joint_settings})
    models = Models(None, [], [], CenterFaceDetector(), CPU)
    home = Path(os.environ.get("DLADIFF_ASSETS", "../shared/assets")) / "taesd"
    with tempfile.TemporaryDirectory() as folder:
        known = spaces(Path(folder), home)
    pushes = [tuple(text.split(",")) for text in given.push or ()] or default_pushes()
    if not given.variants:
        rows = [figures(photo, noise(photo, config, models), known, config, models) for photo in photos]
        printed("noise", rows)
    for pushed in pushes:
        for variant, kind in VARIANTS.items() if given.variants else [("", LatentShift)]:
            joint.LatentShift = kind  # type: ignore[misc]
            rows, directions = [], []
            for path, photo in zip(given.photos, photos, strict=True):
                found, pixels = row(photo, [known[name] for name in pushed], known, config, models)
                rows.append(found)
                label = f"{variant} {', '.join(SPACES[name] for name in pushed)}".strip()
                if given.variants:
                    a, b = (to_float(image) for image in (photo, pixels))
                    directions.append(moved(known[pushed[0]], a, b).mean((2, 3)).flatten())
                if given.save:
                    given.save.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(given.save / f"{path.stem}-{label.replace(', ', '-')}.png")
            if len(directions) > 1:
                rows[0]["cosine"] = float(torch.cosine_similarity(directions[0], directions[1], dim=0))
            printed(label, rows)


def printed(label: str, rows: Sequence[dict[str, float]]) -> None:
    """Print a row: means over the photos."""
    means = {name: np.mean([row[name] for row in rows if name in row]) for name in rows[0]}
    print(f"| {label} | " + " | ".join(f"{name} {value:.3g}" for name, value in means.items()) + " |", flush=True)


if __name__ == "__main__":
    main()
