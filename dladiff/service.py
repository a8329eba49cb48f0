"""Long-lived protection service: loads the models once, then protects identities one after another."""

import gc
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dladiff.core.arrays import Pixels
from dladiff.core.exchange import IdentityOut, PhotoIn, PhotoOut
from dladiff.core.pixels import Images, to_float
from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.base_model import BaseModel
from dladiff.diffusion.catalogue import locate, profile_fault
from dladiff.diffusion.loading import load_base_model
from dladiff.diffusion.transformer_architecture import settings_fault
from dladiff.diffusion.vae import Vae, load_vaes
from dladiff.diffusion.vae_catalogue import resolution_fault, vae_profile_fault
from dladiff.errors import ConfigError, ModelError
from dladiff.faces import packs
from dladiff.faces.clean_set import best_photos
from dladiff.faces.clip_encoder import load_clip_encoder
from dladiff.faces.detect import CenterFaceDetector, Detector, ScrfdDetector
from dladiff.faces.encoder import IdentityEncoder, detector_from_pack, encoder_from_pack, load_encoder
from dladiff.faces.largest import largest_faces
from dladiff.faces.readings import load_reading
from dladiff.faces.weights import missing_weights
from dladiff.layers.pushed import pushed_vaes, vaes_not_here
from dladiff.protect import Models, protect
from dladiff.settings.adapters import PREFIX
from dladiff.settings.schema import encoder_fault, method_config

__all__ = ["IdentityOut", "PhotoIn", "PhotoOut", "Protector"]

EMBEDDED_ENCODERS = Path(__file__).parent / "profiles" / "tiny" / "encoders"
"""Folder of the small identity encoders in this package."""
PHOTOS = {".jpg", ".jpeg", ".png", ".webp"}
GRAPHS_DISABLED = "GPU out of memory: steps are no longer recorded"
PACKAGES = ("torch", "diffusers", "transformers", "onnxruntime", "insightface", "numpy", "pillow")


class Protector:
    """Protects identities with the networks of one configuration."""

    graphs_disabled = False
    """Whether CUDA graphs were switched off after the GPU ran out of memory."""

    def __init__(self, settings: Mapping[str, Any], seed: int, threads: int) -> None:
        """Load the models of `settings`: profile, preset, overrides, trace, gpu. Raises ConfigError or ModelError.

        `gpu`: True for a GPU, False for the CPU; by default a GPU if there is one.
        """
        torch.set_num_threads(max(1, threads))
        _quiet()
        self.config = method_config(settings["profile"], settings.get("preset"), settings.get("overrides") or {})
        if fault := encoder_fault(self.config):
            raise ConfigError([fault])
        if fault := missing_weights([*self.config.encoders, *self.config.held_out]):
            raise ModelError(fault)
        self.seed, self.trace = seed, bool(settings.get("trace"))
        device = chosen_device(settings.get("gpu"))
        zero_shot = self.config.zero_shot
        self.models = Models(
            self._surrogate(device),
            [named_encoder(name).to(device) for name in self.config.encoders],
            [named_encoder(name).to(device) for name in self.config.held_out],
            named_detector(self.config.detector, zero_shot.min_face_px, zero_shot.detector_threshold, device),
            device,
            load_vaes(pushed_vaes(self.config), self.config.joint.vae_weights, device),
        )
        held = {e.sha256: e.name for e in self.models.held_out}
        if twice := [f"{e.name} ({held[e.sha256]})" for e in self.models.encoders if e.sha256 in held]:
            raise ConfigError([f"held_out: {', '.join(twice)} is optimised: encoders names the same file"])
        if len({(e.sha256, e.reading) for e in self.models.encoders}) < len(self.models.encoders):
            raise ConfigError(
                ["encoders: one file is listed twice; remove one, and set its weight in zero_shot.encoder_weights"]
            )
        for weighted in self.models.vaes:
            if fault := resolution_fault(weighted.vae.name, weighted.vae.factor, self.config.resolution):
                raise ConfigError([fault])

    def _surrogate(self, device: torch.device) -> BaseModel | None:
        """Return the whole base model, None where no layer needs it. Raises ConfigError or ModelError."""
        config = self.config
        if not config.trains_surrogate:
            if (
                config.pushes_latents
                and not config.joint.vaes
                and (fault := vae_profile_fault(config.profile, config.model))
            ):
                raise ConfigError([fault])
            return None
        if fault := profile_fault(config.profile, locate(config.model)):
            raise ConfigError([fault])
        finetuning, compared = config.finetuning, config.protection != "dladiff"
        architecture = read_architecture(locate(config.model))
        if fault := settings_fault(architecture, compared, finetuning.low_rank, config.gpu_memory):
            raise ConfigError([fault])
        surrogate = load_base_model(config.model, device)
        sides = surrogate.map_sides(config.resolution)
        if finetuning.iter_1 and finetuning.attention_resolution not in sides:
            raise ConfigError(
                [
                    f"finetuning.attention_resolution: {finetuning.attention_resolution} is not a side of this model's "
                    f"attention maps at {config.resolution} px; choose one of {', '.join(map(str, sides))}"
                ]
            )
        if config.gpu_memory != "any" and surrogate.card_fault:
            raise ConfigError([f"gpu_memory: {surrogate.card_fault}; leave this setting out"])
        if finetuning.class_images:
            images = class_images(Path(finetuning.class_images), config.resolution)
            surrogate.set_prior(images, finetuning.class_prompt, finetuning.batch)
        return surrogate

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Pixels]) -> IdentityOut:
        """Return the protected photos of one identity; the result does not depend on its name.

        `clean`: if there are more than `clean_photos`, the best are used. If the GPU runs out of memory, the identity
        is protected again, first without CUDA graphs, then with half the batch, repeatedly. The result is the same
        except for rounding, and `note` reports the change. Raises torch.OutOfMemoryError if one square does not fit.
        """
        cuda = self.models.device.type == "cuda"
        chosen = best_photos(clean, self.config.clean_photos, self.models.detector)
        faces = self._largest_faces([photo.pixels for photo in photos])
        config, left_out = self.config, vaes_not_here(self.config)
        note = GRAPHS_DISABLED if self.graphs_disabled else ""
        while True:
            if cuda:
                _free()
                torch.cuda.reset_peak_memory_stats()
            try:
                done = protect(photos, chosen, self.models, config, self.seed, self.trace)
                break
            except torch.OutOfMemoryError:
                surrogate = self.models.surrogate
                if surrogate is not None and surrogate.use_cuda_graphs:
                    surrogate.use_cuda_graphs = False  # also for later identities
                    self.graphs_disabled, note = True, GRAPHS_DISABLED
                    continue
                size = config.finetuning.batch_photos
                if size == 1:
                    raise
                config = config.replaced(finetuning=config.finetuning.replaced(batch_photos=size // 2))
                note = (
                    f"GPU out of memory: batch_photos lowered from {self.config.finetuning.batch_photos} to {size // 2}"
                )
        memory = self._peak_memory()
        if cuda:
            _free()
        note = "; ".join(filter(None, (left_out, note)))
        metadata = (memory, self._device_name(), self._described(), _versions(), note)
        return IdentityOut(
            done.photos, done.seconds, *metadata, steps=done.steps, trace=done.trace, largest_faces=faces
        )

    def device_fault(self) -> str | None:
        """Return what a small computation on the GPU fails with; None: it works, or there is no GPU."""
        if self.models.device.type != "cuda":
            return None
        try:
            torch.ones(8, device=self.models.device).sum().item()
        except Exception as error:  # of the driver, the runtime or the card: each has kinds of its own
            return (str(error).strip() or repr(error)).splitlines()[0]
        return None

    def _largest_faces(self, photos: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        if len(photos) < 2:  # nothing to compare
            return []
        return largest_faces(photos, self.models.detector, self.models.encoders, self.models.device)

    def _peak_memory(self) -> int:
        if self.models.device.type == "cuda":
            return torch.cuda.max_memory_reserved()  # reserved, not allocated: it includes the pool of CUDA graphs
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self.models.device.type == "cuda" else "cpu"

    def _described(self) -> list[dict[str, str]]:
        models = self.models
        rows = []
        bases: list[tuple[str, BaseModel | Vae]] = [("vae", weighted.vae) for weighted in models.vaes]
        for role, base in [("surrogate", models.surrogate), *bases] if models.surrogate else bases:
            pinned = {"licence": base.licence, "source": base.source, "revision": base.revision}
            rows.append({"name": base.name, "role": role, "sha256": base.sha256} | pinned)
        for role, parts in (
            ("encoder", models.encoders),
            ("held_out", models.held_out),
            ("detector", [models.detector]),
        ):
            rows += [{"name": p.name, "role": role, "sha256": p.sha256, "licence": p.licence} for p in parts]
        return rows


def chosen_device(gpu: bool | None) -> torch.device:
    """Return the GPU or the CPU; None: the GPU if there is one. Raises ModelError: no GPU, but `gpu` is True."""
    available = torch.cuda.is_available()
    if gpu and not available:
        raise ModelError(
            f"a GPU is requested, but torch {torch.__version__} finds none: install its CUDA build and the NVIDIA "
            "driver, or set gpus_per_actor: 0 to work on the CPU"
        )
    return torch.device("cuda" if available and gpu is not False else "cpu")


def class_images(folder: Path, resolution: int) -> Images:
    """Return the central squares of a folder's photos, `m 3 r r`. Raises ModelError: no photos, or unreadable."""
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
    """Load `embedded:NAME`, an ONNX file, an InsightFace pack (name or folder), `clip:FOLDER`, or one reading of an
    adapter (`adapter:pulid.eva`). Raises ModelError.
    """
    if name.startswith("embedded:"):
        short = name.removeprefix("embedded:")
        path = EMBEDDED_ENCODERS / f"{short}.onnx"
        if Path(short).name != short or not path.is_file():
            known = ", ".join(sorted(p.stem for p in EMBEDDED_ENCODERS.glob("*.onnx")))
            raise ModelError(f"no embedded encoder named {short!r}; this package ships: {known}")
        return load_encoder(path, short)
    if name.startswith(packs.CLIP):
        return load_clip_encoder(name)
    if name.startswith(PREFIX):
        return load_reading(name)
    source = packs.located(name)
    return load_encoder(encoder_from_pack(source), source.name) if source.is_dir() else load_encoder(source)


def named_detector(name: str, min_face_px: int, threshold: float, device: torch.device | None = None) -> Detector:
    """Load `centerface`, an SCRFD ONNX file or an InsightFace pack (name or folder). Raises ModelError.

    CenterFace runs on `device`, SCRFD on the CPU.
    """
    if name == "centerface":
        return CenterFaceDetector(min_face_px=min_face_px, threshold=threshold, device=device)
    source = packs.located(name)
    return ScrfdDetector(
        detector_from_pack(source) if source.is_dir() else source, min_face_px=min_face_px, threshold=threshold
    )


def _free() -> None:
    """Free cached GPU memory of the last identity."""
    gc.collect()
    torch.cuda.empty_cache()


def _quiet() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}
