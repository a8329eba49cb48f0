"""Purification by diffusion: noise covers the perturbation, then a diffusion model denoises the photo.

`sdedit` uses the embedded tiny bundle by default. The others need weights. A photo's pixels seed its noise.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import to_float, to_uint8
from dladiff.core.tiles import Square, covering_squares
from dladiff.errors import ModelError
from dladiff.evaluation.attackers.base import load_unet_base
from dladiff.evaluation.preprocessing_records import Preprocessing
from dladiff.evaluation.squares import MAX_SQUARES, in_squares, mean_of_squares, seeded, squares_of
from dladiff.faces.detect import CenterFaceDetector

SDEDIT_STRENGTH, SDEDIT_STEPS = 0.2, 50
"""Share of the schedule that is noised and denoised; steps of the whole schedule (ten of them run)."""
DIFFPURE_T = 150
"""Nie et al. 2022, t* = 0.15 of 1000 steps."""
GRID_T, GRID_ROUNDS, GRID_KEEP, GRID_SIDE = 10, 20, 0.1, 256
"""Zhao et al. 2024: steps of a round, rounds, share of its input that a round keeps, side of a grid cell in px (the
stride is half of it)."""
UPSCALE_NOISE, UPSCALE_LEVEL, UPSCALE_SIDE = 0.1, 20, 512
"""Hoenig et al. 2025: noise on [-1, 1] before upscaling; the upscaler's noise level; longest side of its input, px."""


PURIFIERS = (
    Preprocessing(
        name="sdedit",
        function="sdedit",
        purifier=True,
        about="SDEdit: a base model redraws the last 20 % of its schedule, on each face's square",
    ),
    Preprocessing(
        name="diffpure",
        function="pixel_model",
        purifier=True,
        settings={"grid": False},
        about="DiffPure: noise to t* = 150, ancestral steps back",
        needs="an unconditional pixel model in the diffusers layout (google/ddpm-celebahq-256 for faces)",
    ),
    Preprocessing(
        name="gridpure",
        function="pixel_model",
        purifier=True,
        settings={"grid": True},
        about="GrIDPure: 20 rounds of 10 steps on cells of 256 px",
        needs="an unconditional pixel model in the diffusers layout (google/ddpm-celebahq-256 for faces)",
    ),
    Preprocessing(
        name="noisy_upscaling",
        function="noisy_upscaling",
        purifier=True,
        about="Noisy Upscaling: noise of 0.1 on [-1, 1], an upscaler, the original size",
        needs="an upscaler in the diffusers layout (stabilityai/stable-diffusion-x4-upscaler)",
    ),
)


def sdedit(weights: str, device: str) -> Callable[[Pixels], Pixels]:
    """Return SDEdit with a base model, by default the tiny bundle. Raises ModelError."""
    return _SdEdit(weights or "embedded", device)


def pixel_model(weights: str, device: str, grid: bool) -> Callable[[Pixels], Pixels]:
    """Return DiffPure, or GrIDPure (`grid`). Raises ModelError."""
    return _PixelModel(Path(weights), device, grid)


def noisy_upscaling(weights: str, device: str) -> Callable[[Pixels], Pixels]:
    """Return Noisy Upscaling. Raises ModelError."""
    return _NoisyUpscaling(Path(weights), device)


class _SdEdit:
    """SDEdit (Meng et al. 2022) in the latents of a text-to-image model, on face squares or squares of the photo."""

    def __init__(self, model: str, device: str) -> None:
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline

        base = load_unet_base(model, device)
        parts = {k: getattr(base.pipe, k) for k in ("vae", "text_encoder", "tokenizer", "unet")}
        self.base = base
        self.pipe = StableDiffusionImg2ImgPipeline(
            **parts,
            scheduler=DPMSolverMultistepScheduler.from_config(base.pipe.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.detector = CenterFaceDetector()

    def __call__(self, photo: Pixels) -> Pixels:
        squares = squares_of(photo, self.base.region, self.detector)
        generator = seeded(photo)

        def purify(crop: Tensor) -> Tensor:
            image: Tensor = self.pipe(
                "a photo of a person",
                image=crop,
                strength=SDEDIT_STRENGTH,
                num_inference_steps=SDEDIT_STEPS,
                guidance_scale=1.0,
                generator=generator,
                output_type="pt",
            ).images
            return image.float().cpu()

        return in_squares(photo, squares, self.base.resolution, purify)


class _PixelModel:
    """DiffPure (Nie et al. 2022: noise to t*, ancestral steps back) or GrIDPure (Zhao et al. 2024: many short rounds).

    DiffPure purifies squares that cover the photo, resized to the model's size. GrIDPure purifies overlapping cells at
    the photo's own size, and mixes a tenth of each round's input into its result.
    """

    def __init__(self, folder: Path, device: str, grid: bool) -> None:
        from diffusers import DDPMScheduler, UNet2DModel

        self.grid, self.device = grid, torch.device(device)
        root = folder / "unet" if (folder / "unet").is_dir() else folder
        schedule = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
        try:
            self.unet = UNet2DModel.from_pretrained(root, local_files_only=True, use_safetensors=True)
            self.schedule = DDPMScheduler.from_pretrained(schedule, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the pixel model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
        self.unet.eval().requires_grad_(False).to(self.device)

    def __call__(self, photo: Pixels) -> Pixels:
        generator = seeded(photo)
        if not self.grid:
            side = int(self.unet.config.sample_size)
            squares = covering_squares(photo.shape[0], photo.shape[1], MAX_SQUARES)
            return in_squares(photo, squares, side, lambda crop: self._round(crop, DIFFPURE_T, generator))
        side = min(GRID_SIDE, *photo.shape[:2])
        squares = [Square(x, y, side) for y in _starts(photo.shape[0], side) for x in _starts(photo.shape[1], side)]
        x = to_float(photo)
        for _ in range(GRID_ROUNDS):
            purified = mean_of_squares(x, squares, side - side % 32, lambda crop: self._round(crop, GRID_T, generator))
            x = (1 - GRID_KEEP) * purified + GRID_KEEP * x
        return to_uint8(x)

    def _round(self, crop: Tensor, steps: int, generator: Generator) -> Tensor:
        """Add the noise of timestep `steps` and denoise it with so many ancestral steps."""
        x: Tensor = (crop * 2 - 1).to(self.device)
        noise = torch.randn(x.shape, generator=generator).to(x)
        x = self.schedule.add_noise(x, noise, torch.tensor([steps - 1], device=self.device))
        self.schedule.set_timesteps(self.schedule.config.num_train_timesteps)
        with torch.no_grad():
            for t in range(steps - 1, -1, -1):
                x = self.schedule.step(self.unet(x, t).sample, t, x, generator=generator).prev_sample
        return (x.clamp(-1, 1).cpu() + 1) / 2


class _NoisyUpscaling:
    """Noisy Upscaling (Hoenig et al. 2025): Gaussian noise, a diffusion upscaler, resizing to the original size."""

    def __init__(self, folder: Path, device: str) -> None:
        from diffusers import StableDiffusionUpscalePipeline

        try:
            self.pipe = StableDiffusionUpscalePipeline.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            ).to(device)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"the upscaler in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
        for part in (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder):
            part.float()
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, photo: Pixels) -> Pixels:
        height, width = photo.shape[:2]
        scale = min(1.0, UPSCALE_SIDE / max(height, width))
        size = tuple(max(64, round(side * scale) // 8 * 8) for side in (width, height))
        small = to_float(np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)).copy()) * 2 - 1
        generator = seeded(photo)
        noisy = (small + UPSCALE_NOISE * torch.randn(small.shape, generator=generator)).clamp(-1, 1)
        image = self.pipe("", image=noisy, noise_level=UPSCALE_LEVEL, generator=generator, output_type="pt").images
        large = Image.fromarray(to_uint8(image.float()))
        return np.asarray(large.resize((width, height), Image.Resampling.LANCZOS)).copy()


def _starts(length: int, side: int) -> list[int]:
    """Return the offsets of the cells along one axis: half a side apart, the last one at the edge."""
    return sorted({*range(0, length - side, max(1, side // 2)), length - side})
