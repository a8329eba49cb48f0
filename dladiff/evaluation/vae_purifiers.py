"""Purification by a base model's VAE alone: once through it, and IMPRESS.

Both work on the squares of SDEdit, at the base model's size. A photo's pixels seed its noise.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import Images
from dladiff.core.ssimulacra2 import Ssimulacra2
from dladiff.evaluation.attackers.base import load_unet_base
from dladiff.evaluation.preprocessing_records import Preprocessing
from dladiff.evaluation.squares import in_squares, seeded, squares_of
from dladiff.faces.detect import CenterFaceDetector

IMPRESS_STEPS, IMPRESS_RATE = 300, 0.005
"""Adam steps and their learning rate, [0, 1] units. The authors take 3,000 steps of this rate (0.01 on [-1, 1])."""
IMPRESS_NOISE = 0.05
"""Standard deviation of the noise at the start, [0, 1] units (0.1 on [-1, 1])."""
IMPRESS_WEIGHT, IMPRESS_SCORE = 0.1, 60.0
"""Weight of the perceptual term, and lowest SSIMULACRA2 without a penalty."""

VAE_PURIFIERS = (
    Preprocessing(
        name="vae",
        function="round_trip",
        purifier=True,
        about="once through a base model's VAE, on each face's square",
    ),
    Preprocessing(
        name="impress",
        function="impress",
        purifier=True,
        about="IMPRESS: the photo is optimised to equal its reconstruction by the VAE, on each face's square",
    ),
)


def round_trip(weights: str, device: str) -> Callable[[Pixels], Pixels]:
    """Return the reconstruction by a base model's VAE, by default the tiny bundle's. Raises ModelError."""
    return _OfVae(weights or "embedded", device, lambda vae, x, _: reconstructed(vae, x))


def impress(weights: str, device: str) -> Callable[[Pixels], Pixels]:
    """Return IMPRESS with a base model's VAE, by default the tiny bundle's. Raises ModelError."""
    return _OfVae(weights or "embedded", device, impressed)


def reconstructed(vae: torch.nn.Module, x: Images) -> Images:
    """Return D(E(x)) in [0, 1], by the posterior's mean."""
    latents = vae.encode(x * 2 - 1).latent_dist.mode()  # type: ignore[operator]
    decoded: Images = vae.decode(latents).sample / 2 + 0.5  # type: ignore[operator]
    return decoded


def inconsistency(vae: torch.nn.Module, x: Images) -> Tensor:
    """Return IMPRESS's first loss: the mean squared difference between pictures and their reconstruction."""
    return functional.mse_loss(reconstructed(vae, x), x)


def impressed(vae: torch.nn.Module, protected: Images, generator: Generator) -> Images:
    """Return the square that IMPRESS finds (Cao et al. 2023, arXiv 2310.19248), `1 3 r r`.

    Adam minimises inconsistency + weight * max(perceptual distance - bound, 0), from the protected square with noise.
    The distance is 1 - SSIMULACRA2 / 100 to the protected square where the paper has LPIPS: no weights of LPIPS can be
    shipped. The VAE's decoder takes part in the gradient.
    """
    metric = Ssimulacra2(protected, exact=False)
    noise = torch.randn(protected.shape, generator=generator).to(protected)
    point = (protected + IMPRESS_NOISE * noise).clamp(0, 1).requires_grad_(True)
    optimiser = torch.optim.Adam([point], lr=IMPRESS_RATE)
    for _ in range(IMPRESS_STEPS):
        optimiser.zero_grad(set_to_none=True)
        distance = ((IMPRESS_SCORE - metric(point).min()) / 100).clamp_min(0)
        (inconsistency(vae, point) + IMPRESS_WEIGHT * distance).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            point.clamp_(0, 1)
    return point.detach()


class _OfVae:
    """A purifier of squares with the VAE of a base model."""

    def __init__(self, model: str, device: str, purify: Callable[[torch.nn.Module, Images, Generator], Images]) -> None:
        self.base, self.purify = load_unet_base(model, device), purify
        self.detector = CenterFaceDetector()

    def __call__(self, photo: Pixels) -> Pixels:
        generator, vae = seeded(photo), self.base.pipe.vae

        def purified(crop: Tensor) -> Tensor:
            return self.purify(vae, crop.to(self.base.device), generator).detach().float().cpu()

        return in_squares(photo, squares_of(photo, self.base.region, self.detector), self.base.resolution, purified)
