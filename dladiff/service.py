"""Models loaded once, identities protected one after another: what a long-lived worker holds."""

import gc
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from dladiff.core.exchange import IdentityOut, PhotoIn, PhotoOut
from dladiff.core.pixels import Images, Pixels, to_float
from dladiff.diffusion.surrogate import Surrogate
from dladiff.errors import ConfigError, ModelError
from dladiff.faces import packs
from dladiff.faces.clean_set import best_photos
from dladiff.faces.clip_encoder import load_clip_encoder
from dladiff.faces.detect import CenterFaceDetector, Detector, ScrfdDetector
from dladiff.faces.encoder import IdentityEncoder, detector_from_pack, encoder_from_pack, load_encoder
from dladiff.faces.image_network import ImageNetwork
from dladiff.protect import Models, protect
from dladiff.settings.schema import method_config

__all__ = ["IdentityOut", "PhotoIn", "PhotoOut", "Protector"]

EMBEDDED_ENCODERS = Path(__file__).parent / "profiles" / "tiny" / "encoders"
"""The small identity encoders that ship with the package."""
PHOTOS = {".jpg", ".jpeg", ".png", ".webp"}
UNRECORDED = "GPU out of memory: steps are no longer recorded"
PACKAGES = ("torch", "diffusers", "transformers", "onnxruntime", "insightface", "numpy", "pillow")


class Protector:
    """Holds the networks of one configuration."""

    unrecorded = False
    """Whether memory ran out while steps were recorded."""

    def __init__(self, settings: Mapping[str, Any], seed: int, threads: int) -> None:
        """Load the models of `settings`: profile, preset, overrides, trace, gpu. Raises ConfigError or ModelError.

        `gpu` says whether to work on a GPU; left out, where there is one.
        """
        torch.set_num_threads(max(1, threads))
        _quiet()
        self.config = method_config(settings["profile"], settings.get("preset"), settings.get("overrides") or {})
        self.seed, self.trace = seed, bool(settings.get("trace"))
        device = chosen_device(settings.get("gpu"))
        zero_shot = self.config.zero_shot
        self.models = Models(
            Surrogate(self.config.model, device),
            [named_encoder(name).to(device) for name in self.config.encoders],
            [named_encoder(name).to(device) for name in self.config.held_out],
            named_detector(self.config.detector, zero_shot.min_face_px, zero_shot.detector_threshold),
            device,
            ImageNetwork(self.config.lpips, "lpips").measure if self.config.lpips else None,
        )
        held = {e.sha256: e.name for e in self.models.held_out}
        if twice := [f"{e.name} ({held[e.sha256]})" for e in self.models.encoders if e.sha256 in held]:
            raise ConfigError([f"held_out: {', '.join(twice)} is optimised against: the same file stands in encoders"])
        if len({e.sha256 for e in self.models.encoders}) < len(self.models.encoders):
            raise ConfigError(["encoders: the same file stands there twice; zero_shot.weights gives one more weight"])
        finetuning = self.config.finetuning
        sides = self.models.surrogate.map_sides(self.config.resolution)
        if self.config.layers != "zero_shot" and finetuning.iter_1 and finetuning.attention_resolution not in sides:
            raise ConfigError(
                [
                    f"finetuning.attention_resolution: {finetuning.attention_resolution} is no side of this model's "
                    f"attention maps at {self.config.resolution} px; choose one of {', '.join(map(str, sides))}"
                ]
            )
        if self.config.fits != "any" and len(self.models.surrogate.encoders) > 1:
            raise ConfigError(["fits: SDXL's weights, gradients and moments alone take 41 GB; leave this setting out"])
        if finetuning.class_images:
            images = class_images(Path(finetuning.class_images), self.config.resolution)
            self.models.surrogate.set_prior(images, finetuning.class_prompt, finetuning.batch)

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Pixels]) -> IdentityOut:
        """Protect the photos of one identity; its name takes no part in the result.

        `clean` may hold more photos than the method wants: the best are taken. When the GPU runs out of memory the
        identity is begun again, first without recorded steps, then with a batch of half the size: the same mathematics,
        and the note says so.
        """
        cuda = self.models.device.type == "cuda"
        chosen = best_photos(clean, self.config.clean_photos, self.models.detector)
        config, note = self.config, UNRECORDED if self.unrecorded else ""
        while True:
            if cuda:
                _free()
                torch.cuda.reset_peak_memory_stats()
            try:
                done = protect(photos, chosen, self.models, config, self.seed, self.trace)
                break
            except torch.OutOfMemoryError:
                if self.models.surrogate.recorded:
                    self.models.surrogate.recorded = False  # for the identities to come as well
                    self.unrecorded, note = True, UNRECORDED
                    continue
                size = config.finetuning.batch_photos
                if size == 1:
                    raise
                finetuning = replace(config.finetuning, batch_photos=size // 2)
                config = replace(config, finetuning=finetuning)
                note = (
                    f"GPU out of memory: batch_photos lowered from {self.config.finetuning.batch_photos} to {size // 2}"
                )
        memory = self._peak_memory()
        if cuda:
            _free()
        about = (memory, self._device_name(), self._described(), _versions(), note)
        return IdentityOut(done.photos, done.seconds, *about, steps=done.steps, trace=done.trace)

    def _peak_memory(self) -> int:
        if self.models.device.type == "cuda":
            return torch.cuda.max_memory_reserved()  # what recorded steps keep counts as free, but nobody else gets it
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self.models.device.type == "cuda" else "cpu"

    def _described(self) -> list[dict[str, str]]:
        models, surrogate = self.models, self.models.surrogate
        pinned = {"licence": surrogate.licence, "source": surrogate.source, "revision": surrogate.revision}
        rows = [{"name": surrogate.name, "role": "surrogate", "sha256": surrogate.sha256} | pinned]
        for role, parts in (
            ("encoder", models.encoders),
            ("held_out", models.held_out),
            ("detector", [models.detector]),
        ):
            rows += [{"name": p.name, "role": role, "sha256": p.sha256, "licence": p.licence} for p in parts]
        return rows


def chosen_device(gpu: bool | None) -> torch.device:
    """Return the GPU or the CPU; None: the GPU where there is one. Raises ModelError: asked for and not there."""
    there = torch.cuda.is_available()
    if gpu and not there:
        raise ModelError(
            f"a GPU is asked for, and torch {torch.__version__} finds none: install its CUDA build and the NVIDIA "
            "driver, or set gpus_per_actor: 0 to work on the CPU"
        )
    return torch.device("cuda" if there and gpu is not False else "cpu")


def class_images(folder: Path, resolution: int) -> Images:
    """Read the photos of a folder as `m 3 r r`: the middle square of each. Raises ModelError where there are none."""
    files = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in PHOTOS] if folder.is_dir() else []
    if not files:
        raise ModelError(f"no photos in {folder}: finetuning.class_images names a folder of photos of other people")
    squares = []
    for file in files:
        try:
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ModelError(f"the class image {file} cannot be read; remove it") from error
        squares.append(to_float(np.array(ImageOps.fit(upright, (resolution, resolution), Image.Resampling.LANCZOS))))
    return torch.cat(squares)


def named_encoder(name: str) -> IdentityEncoder:
    """Load `embedded:NAME`, an ONNX file, an InsightFace pack (name or folder) or `clip:FOLDER`. Raises ModelError."""
    if name.startswith("embedded:"):
        short = name.removeprefix("embedded:")
        path = EMBEDDED_ENCODERS / f"{short}.onnx"
        if Path(short).name != short or not path.is_file():
            known = ", ".join(sorted(p.stem for p in EMBEDDED_ENCODERS.glob("*.onnx")))
            raise ModelError(f"no embedded encoder named {short!r}; this package ships: {known}")
        return load_encoder(path, short)
    if name.startswith(packs.CLIP):
        return load_clip_encoder(name)
    source = packs.located(name)
    return load_encoder(encoder_from_pack(source), source.name) if source.is_dir() else load_encoder(source)


def named_detector(name: str, min_face_px: int, threshold: float) -> Detector:
    """Load `centerface`, an SCRFD ONNX file or an InsightFace pack (name or folder). Raises ModelError."""
    if name == "centerface":
        return CenterFaceDetector(min_face_px=min_face_px, threshold=threshold)
    source = packs.located(name)
    return ScrfdDetector(
        detector_from_pack(source) if source.is_dir() else source, min_face_px=min_face_px, threshold=threshold
    )


def _free() -> None:
    """Give memory back to the device: what the last identity left is no other's."""
    gc.collect()
    torch.cuda.empty_cache()


def _quiet() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}
