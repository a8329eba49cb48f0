"""Configuration of the method: frozen dataclasses, one check of everything at once.

Pixel quantities are in [0, 1] units (7/255 is seven grey levels). Nothing here imports torch: the driver reads it.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dladiff.errors import ConfigError
from dladiff.settings.merge import build, merge, nearest
from dladiff.settings.presets import FITS, PRESETS, PROFILES
from dladiff.settings.schedules import SCHEDULES, Protection


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    """Layer 1 (Algorithm 1): the perturbation against fine-tuning."""

    eta: float = 7 / 255
    """Bound of the perturbation, L-inf, [0, 1] units."""
    step: float = 2.5e-3
    """PGD step, [0, 1] units (the paper's 5e-3 on [-1, 1] tensors)."""
    gradient: Literal["sign", "l2", "raw"] = "sign"
    """How a gradient becomes a step."""
    momentum: float = 0.0
    """Decay of the momentum that perturbation steps keep (MI-FGSM); 0 is the paper's, without."""
    least_psnr: float = 0.0
    """PSNR, dB, that the perturbation of a working square keeps beside `eta`; 0 leaves it out."""
    most_lpips: float = 0.0
    """LPIPS, by the network that `lpips` names, that the perturbation of a working square does not exceed; 0: any."""
    smooth: float = 0.0
    """Standard deviation, pixels of the working square, of the blur that the perturbation gets where the photo is
    smooth (skin, sky, walls); 0 leaves it as it is."""
    iter_ft: int = 400
    """Optimiser steps of the static surrogate on the clean set; 0 leaves it pretrained."""
    iter_opt: int = 50
    """Epochs of attention steps, denoising steps and dynamic-surrogate training."""
    iter_1: int = 3
    """Attention steps an epoch."""
    iter_2: int = 3
    """Denoising-loss steps an epoch."""
    iter_3: int = 3
    """Training steps of the dynamic surrogate an epoch."""
    lr_static: float = 5e-6
    """AdamW learning rate of the static surrogate."""
    lr_dynamic: float = 5e-6
    """AdamW learning rate of the dynamic surrogate."""
    weight_decay: float = 1e-2
    """AdamW weight decay of both surrogates."""
    batch: int = 4
    """Photos in one training step of the static surrogate."""
    batch_photos: int = 4
    """Working squares on the device at once: a matter of memory and speed, not of the result, rounding apart."""
    robust: bool = False
    """Draw a JPEG, a resize, a blur or nothing for each photo and perturbation step, inside the loss."""
    offload: bool = False
    """Keep in the host's memory what waits: the optimiser's moments between training steps, the static surrogate while
    the dynamic one learns. Slower, less GPU memory, the same steps."""
    recompute: bool = False
    """Compute inner values of the networks again in the backward pass instead of keeping them: slower, less memory."""
    attention_resolution: int = 16
    """Side, in latent cells, of the attention maps that the attention loss compares."""
    tokens: Literal["all", "instance"] = "all"
    """Text tokens whose cross-attention counts."""
    self_weight: float = 1.0
    """Weight of self-attention against cross-attention, both means over their maps."""
    prompt: str = "a photo of sks person"
    """Prompt of every training and attack step."""
    class_images: str = ""
    """Folder of photos of other people for the prior term of L_db; empty leaves the term out."""
    class_prompt: str = "a photo of a person"
    """Prompt of the class images."""
    prior_weight: float = 1.0
    """Weight of the prior term."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Layer 2 (Algorithm 2): the perturbation against identity encoders."""

    eta: float = 11 / 255
    """Bound of the perturbation, L-inf, [0, 1] units."""
    step: float = 4e-4
    """PGD step, [0, 1] units (the paper's 8e-4 on the encoder's [-1, 1] input)."""
    max_steps: int = 200
    """Most steps a face gets; the stop rule ends most faces earlier."""
    ths: float = 0.1
    """Stop when every optimised encoder's cosine to the original is at or below this."""
    margin: float = 0.03
    """An encoder this far below `ths` no longer pulls; lower by what its worst reading lies above the loss's mean."""
    draws: int = 4
    """Affine draws averaged in one step."""
    linear_noise: float = 0.05
    """Standard deviation of the noise on the alignment's 2x2 part, relative to it, about the crop's centre."""
    shift_noise: float = 2.0
    """Standard deviation of the noise on its translation, in pixels of the 112 px crop."""
    space: Literal["image", "aligned"] = "image"
    """Where the perturbation lives: the photo's own pixels, or the aligned crop (the paper's)."""
    check_every: int = 10
    """Steps between two measurements on the re-read, re-detected photo."""
    min_face_px: int = 20
    """Faces with a shorter box side than this are left alone."""
    detector_threshold: float = 0.5
    """Least detector score of a face."""
    weights: tuple[float, ...] = ()
    """Weight of each optimised encoder; empty means equal weights."""
    weighting: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` multiplies each weight by how far the encoder's cosine now lies above its goal."""
    momentum: float = 0.0
    """Share of the earlier gradients, each over its L1 mean, that a step keeps (MI-FGSM); 0 leaves it out."""
    robust: bool = False
    """Draw JPEG, resizing, blur or nothing, and a mirror image, inside the loss at every step."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Everything that decides the output bytes of one identity, the photos and the seed apart."""

    profile: str = "tiny"
    """Name of the profile."""
    model: str = "embedded"
    """`embedded` for the tiny bundle in this package, a known model (`sd21`), a folder in the diffusers layout, a hub
    id (`owner/name`, `owner/name@revision`), or, in a run, s3://bucket/prefix."""
    region: Literal["face", "photo"] = "face"
    """What layer 1 works on: the square around each face, or squares that cover the photo."""
    resolution: int = 128
    """Working resolution of layer 1, pixels."""
    max_squares: int = 16
    """Most working squares in one photo."""
    clean_photos: int = 8
    """Most clean photos that the static surrogate learns from: those with the largest, sharpest faces."""
    detector: str = "centerface"
    """`centerface`, or an InsightFace pack (its name or folder) or SCRFD ONNX file."""
    encoders: tuple[str, ...] = ("embedded:residual",)
    """Optimised identity encoders: `embedded:NAME`, an ONNX file, an InsightFace pack (its name, `buffalo_l`, or its
    folder), or `clip:FOLDER`, a CLIP vision tower."""
    held_out: tuple[str, ...] = ("embedded:mobile",)
    """Encoders that are measured and never optimised."""
    lpips: str = ""
    """ONNX file of LPIPS, backbone and heads, of two pictures; `finetuning.most_lpips` needs one."""
    fits: Literal["any", "24GB", "16GB", "12GB"] = "any"
    """GPU memory to stay within: sets `batch_photos`, `recompute` and `offload` where they are not set; for UNets of
    Stable Diffusion 1 and 2. `any` leaves them as they are."""
    layers: Literal["both", "finetuning", "zero_shot"] = "both"
    """Which layers run (the ablations of the paper's Table 5)."""
    protection: Protection = "dladiff"
    """Method of layer 1: this package's, or a compared one, by its own schedule (dladiff/baselines) and
    without layer 2. Its own bound is `finetuning.eta` where no other is set; `step` and the schedule above are not
    its."""
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    """Layer 1."""
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)
    """Layer 2."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        out: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return out


_RANGES: dict[str, tuple[float, float]] = {
    "finetuning.eta": (0, 0.25),
    "finetuning.step": (0, 0.25),
    "finetuning.momentum": (0, 1),
    "finetuning.least_psnr": (0, 100),
    "finetuning.most_lpips": (0, 10),
    "finetuning.smooth": (0, 20),
    "finetuning.iter_ft": (0, 100_000),
    "finetuning.iter_opt": (0, 10_000),
    "finetuning.iter_1": (0, 100),
    "finetuning.iter_2": (0, 100),
    "finetuning.iter_3": (0, 100),
    "finetuning.lr_static": (0, 1),
    "finetuning.lr_dynamic": (0, 1),
    "finetuning.weight_decay": (0, 1),
    "finetuning.batch": (1, 1024),
    "finetuning.batch_photos": (1, 1024),
    "finetuning.attention_resolution": (1, 128),
    "finetuning.self_weight": (0, 1000),
    "finetuning.prior_weight": (0, 1000),
    "zero_shot.eta": (0, 0.25),
    "zero_shot.step": (0, 0.25),
    "zero_shot.max_steps": (0, 100_000),
    "zero_shot.ths": (-1, 1),
    "zero_shot.margin": (0, 3),
    "zero_shot.draws": (1, 64),
    "zero_shot.linear_noise": (0, 1),
    "zero_shot.shift_noise": (0, 20),
    "zero_shot.check_every": (1, 10_000),
    "zero_shot.momentum": (0, 2),
    "zero_shot.min_face_px": (8, 100_000),
    "zero_shot.detector_threshold": (0, 1),
    "resolution": (64, 2048),
    "max_squares": (1, 256),
    "clean_photos": (1, 256),
}


def method_config(profile: str, preset: str | None, overrides: Mapping[str, Any]) -> MethodConfig:
    """Build the configuration: defaults, then the profile, the preset, the overrides.

    Raises ConfigError with every fault at once: unknown names (with the nearest known one), wrong types, ranges.
    """
    faults: list[str] = []
    base = dict(_pick("profile", profile, PROFILES, faults))
    layered: list[Mapping[str, Any]] = [base]
    if preset is not None:
        layered.append(_pick("preset", preset, PRESETS, faults))
    if isinstance(fits := overrides.get("fits"), str) and fits in FITS:
        layered.append(FITS[fits])
    if isinstance(method := overrides.get("protection"), str) and method in SCHEDULES:
        layered.append({"layers": "finetuning", "finetuning": {"eta": SCHEDULES[method].eta}})
    if "profile" in overrides:
        faults.append("profile: is no setting of the method; name it beside it")
    layered.append({key: value for key, value in overrides.items() if key != "profile"})
    merged: dict[str, Any] = {"profile": profile}
    for layer in layered:
        merge(merged, layer)
    config = build(MethodConfig, merged, "", faults)
    known = bool(faults)
    faults += _ranges(config)
    if not known:  # how settings go together nobody can tell before their names and types are right
        faults += _together(config)
    if faults:
        raise ConfigError(faults)
    return typing.cast(MethodConfig, config)


def _pick(what: str, name: str, known: Mapping[str, dict[str, Any]], faults: list[str]) -> dict[str, Any]:
    if name in known:
        return known[name]
    faults.append(f"{what}: {name!r} is unknown{nearest(name, list(known))}; known: {', '.join(known)}")
    return {}


def _ranges(config: MethodConfig) -> list[str]:
    faults = []
    for name, (low, high) in _RANGES.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        if not low <= value <= high:
            faults.append(f"{name}: {value} is outside {low}..{high}")
    return faults


def _together(config: MethodConfig) -> list[str]:
    faults = []
    if config.resolution % 32:
        faults.append(f"resolution: {config.resolution} is not a multiple of 32")
    if config.protection != "dladiff" and config.layers != "finetuning":
        faults.append(f"layers: {config.protection} is a compared method and has no layer 2; leave layers out")
    faults += _check_encoders(config)
    if config.finetuning.most_lpips and not config.lpips:
        faults.append("lpips: finetuning.most_lpips needs the network; name its ONNX file (docs/method.md)")
    if not config.model:
        faults.append(
            "model: is empty; set method.model to a known model (dladiff models list), a folder in the diffusers "
            "layout, a hub id or s3://bucket/prefix"
        )
    return faults


def _check_encoders(config: MethodConfig) -> list[str]:
    faults = []
    if not config.encoders and config.layers != "finetuning":
        faults.append("encoders: layer 2 needs at least one optimised encoder")
    if both := set(config.encoders) & set(config.held_out):
        faults.append(
            f"held_out: {', '.join(sorted(both))} stands in encoders too; a held-out encoder is never optimised"
        )
    weights = config.zero_shot.weights
    if weights and len(weights) != len(config.encoders):
        faults.append(f"zero_shot.weights: {len(weights)} weights for {len(config.encoders)} encoders")
    if not all(0 < weight < math.inf for weight in weights):
        faults.append(f"zero_shot.weights: {list(weights)}: each is a number above 0")
    finetuning = config.finetuning
    if finetuning.tokens == "instance" and "sks" not in finetuning.prompt.split():
        faults.append(f"finetuning.tokens: instance is the token of sks, which {finetuning.prompt!r} does not hold")
    return faults
