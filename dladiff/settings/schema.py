"""Configuration of the method: frozen settings, all checked at once.

Pixel quantities are in [0, 1] units (7/255 is seven grey levels). Nothing here imports torch: the driver reads it.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from dladiff.core.formats import FormatName
from dladiff.errors import ConfigError
from dladiff.settings.adapters import Encoders
from dladiff.settings.joint import JointConfig
from dladiff.settings.merge import merge, nearest
from dladiff.settings.presets import GPU_MEMORY, LOW_RANK, PRESETS, PROFILES
from dladiff.settings.schedules import SCHEDULES, Protection
from dladiff.settings.validate import Items, Settings

WHERE_ENCODERS_COME_FROM = (
    "give --against faceid,instantid, --faces buffalo_l --faces antelopev2, or method.encoders; the packs are in the "
    "releases of github.com/deepinsight/insightface (model zoo; non-commercial use): unpack them in "
    "~/.insightface/models, or in the folder that DLADIFF_FACES names; method.layers: finetuning needs no encoder"
)


class FinetuningConfig(Settings):
    """Layer 1 (Algorithm 1): the perturbation against fine-tuning."""

    eta: float = Field(default=7 / 255, ge=0, le=0.25)
    """Bound of the perturbation, L-inf, [0, 1] units."""
    RENAMED: ClassVar = {"step": "step_size", "least_psnr": "min_psnr"}

    step_size: float = Field(default=2.5e-3, ge=0, le=0.25)
    """PGD step, [0, 1] units (the paper's 5e-3 on [-1, 1] tensors)."""
    min_psnr: float = Field(default=0.0, ge=0, le=100)
    """Lowest PSNR of a working square, dB, as a bound beside `eta`; 0: no such bound."""
    iter_ft: int = Field(default=400, ge=0, le=100_000)
    """Optimiser steps of the static surrogate on the clean set; 0: the pretrained weights."""
    iter_opt: int = Field(default=50, ge=0, le=10_000)
    """Epochs of attention steps, denoising steps and dynamic-surrogate training."""
    iter_1: int = Field(default=3, ge=0, le=100)
    """Attention steps an epoch."""
    iter_2: int = Field(default=3, ge=0, le=100)
    """Denoising-loss steps an epoch."""
    iter_3: int = Field(default=3, ge=0, le=100)
    """Training steps of the dynamic surrogate an epoch."""
    surrogate: Literal["full", "lora"] = "full"
    """What of the UNet is trained: all weights, or low-rank matrices on its attention layers (LoRA). `lora` keeps one
    copy of the UNet instead of two and no moments of its weights."""
    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of these matrices."""
    lr_static: float = Field(default=5e-6, ge=0, le=1)
    """AdamW learning rate of the static surrogate."""
    lr_dynamic: float = Field(default=5e-6, ge=0, le=1)
    """AdamW learning rate of the dynamic surrogate."""
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    """AdamW weight decay of both surrogates."""
    batch: int = Field(default=4, ge=1, le=1024)
    """Photos in one training step of the static surrogate."""
    batch_photos: int = Field(default=4, ge=1, le=1024)
    """Working squares on the device at once; affects memory and speed, and the result by rounding only."""
    offload: bool = False
    """Keep unused tensors in host memory: the optimiser's moments between training steps, the static surrogate during
    training of the dynamic one. Slower, less GPU memory, the same steps."""
    recompute: bool = False
    """Gradient checkpointing: recompute activations in the backward pass. Slower, less memory, the same steps."""
    attention_resolution: int = Field(default=16, ge=1, le=128)
    """Side of the attention maps in the attention loss, latent cells."""
    self_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of self-attention relative to cross-attention; each is a mean over its maps."""
    prompt: str = "a photo of sks person"
    """Prompt of every training and attack step."""
    class_images: str = ""
    """Folder of photos of other people for the prior term of L_db; empty: no prior term."""
    class_prompt: str = "a photo of a person"
    """Prompt of the class images."""
    prior_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the prior term."""

    @property
    def low_rank(self) -> int:
        """The rank of the surrogates' matrices; 0: all weights are trained."""
        return self.rank if self.surrogate == "lora" else 0


class ZeroShotConfig(Settings):
    """Layer 2 (Algorithm 2): the perturbation against identity encoders."""

    eta: float = Field(default=11 / 255, ge=0, le=0.25)
    """Bound of the perturbation, L-inf, [0, 1] units."""
    RENAMED: ClassVar = {
        "step": "step_size",
        "ths": "threshold",
        "weights": "encoder_weights",
        "robust": "eot",
    }

    step_size: float = Field(default=4e-4, ge=0, le=0.25)
    """PGD step, [0, 1] units (the paper's 8e-4 on the encoder's [-1, 1] input)."""
    max_steps: int = Field(default=200, ge=0, le=100_000)
    """Largest number of steps for a face; the stop rule usually ends earlier."""
    threshold: float = Field(default=0.1, ge=-1, le=1)
    """Stop when every optimised encoder's cosine to the original is at or below this."""
    margin: float = Field(default=0.03, ge=0, le=3)
    """Hinge margin: an encoder whose cosine is below `threshold` - `margin` gets no gradient. Lowered by the excess of
    the worst re-detection over the mean of the loss's draws."""
    draws: int = Field(default=4, ge=1, le=64)
    """Random alignments averaged in one step."""
    linear_noise: float = Field(default=0.05, ge=0, le=1)
    """Standard deviation of the noise on the alignment's 2x2 part, relative to it, about the crop's centre."""
    shift_noise: float = Field(default=2.0, ge=0, le=20)
    """Standard deviation of the noise on its translation, in pixels of the 112 px crop."""
    space: Literal["image", "aligned"] = "image"
    """Pixel grid of the perturbation: the photo's own pixels, or the aligned crop (the paper's)."""
    check_every: int = Field(default=10, ge=1, le=10_000)
    """Steps between two checks of the stop rule (rounding and re-detection)."""
    min_face_px: int = Field(default=20, ge=8, le=100_000)
    """Shortest box side of a face, pixels; smaller faces are not protected."""
    detector_threshold: float = Field(default=0.5, ge=0, le=1)
    """Lowest detector score of a face."""
    encoder_weights: Items[Annotated[float, Field(gt=0)]] = ()
    """Weight of each optimised encoder; empty: equal weights."""
    eot: bool = False
    """Expectation over transformation: draw a JPEG, a resize, a blur or nothing, and a mirror image, in every step."""


class ExperimentalConfig(Settings):
    """What is tried out; it may change or go without notice."""

    geometry: float = Field(default=0.0, ge=0, le=3)
    """Largest displacement of the face, per cent of the distance between the eyes: one smooth field a person, the same
    in all photos, optimised against the encoders before the pixels. It changes the face. 0: off."""


class OutputConfig(Settings):
    """The file of a protected photo."""

    format: FormatName = "png"
    """`jpeg`: both layers optimise through the encoder, and every figure is of the decoded file. The bounds hold before
    encoding. A photo with transparency is stored as PNG."""
    quality: int = Field(default=95, ge=75, le=100)
    """Quality of a JPEG. It is lowered, to 75 at least, where the file would exceed 1.3 times a JPEG original's."""
    opt_out: bool = False
    """Write the property "Data Mining: prohibited" (IPTC, PLUS) into the file's XMP; no other metadata is written."""


class MethodConfig(Settings):
    """All settings that determine the output bytes of one identity, besides the photos and the seed."""

    RENAMED: ClassVar = {"fits": "gpu_memory"}

    profile: str = "tiny"
    """Name of the profile."""
    model: str = "embedded"
    """`embedded` for the tiny bundle in this package, a known model (`sd21`), a folder in the diffusers layout, a hub
    id (`owner/name`, `owner/name@revision`), or, in a run, s3://bucket/prefix."""
    region: Literal["face", "photo"] = "face"
    """Working squares of layer 1: one around each face, or several that cover the photo."""
    resolution: int = Field(default=128, ge=64, le=2048, multiple_of=32)
    """Working resolution of layer 1, pixels."""
    max_squares: int = Field(default=16, ge=1, le=256)
    """Largest number of working squares in a photo."""
    clean_photos: int = Field(default=8, ge=1, le=256)
    """Largest number of clean photos for the static surrogate; those with the largest, sharpest faces are chosen."""
    detector: str = "centerface"
    """`centerface`, or an InsightFace pack (its name or folder) or SCRFD ONNX file."""
    encoders: Encoders = ("embedded:residual", "embedded:mobilefacenet")
    """Optimised identity encoders: `embedded:NAME`, an ONNX file, an InsightFace pack (its name or folder),
    `clip:FOLDER` (a CLIP vision tower), `adapter:NAME` (what an identity adapter reads), or a file or folder in s3://.
    The default is of the profile tiny; other profiles have none: this setting, `faces` or `against` names them."""
    held_out: Encoders = Field(default=("embedded:mobile",), validate_default=True)
    """Encoders that are only measured, never optimised. The default is of the profile tiny; other profiles have
    none."""
    gpu_memory: Literal["any", "24GB", "16GB", "12GB"] = "any"
    """Memory of the GPU: sets `batch_photos`, `recompute` and `offload` unless given. For Stable Diffusion 1
    and 2.
    `any`: sets none."""
    layers: Literal["both", "finetuning", "zero_shot"] = "both"
    """Which layers run (the ablations of the paper's Table 5)."""
    layer_1: Literal["auto", "latent", "adft", "both"] = "auto"
    """What layer 1 is. `latent`: it pushes the latents of one or several VAEs (`joint.vaes`), and loads nothing else of
    a model. `adft`: Algorithm 1, with the whole model. `both`: the latent push starts from Algorithm 1's perturbation.
    `auto`: `latent` with `visibility`, else `adft`."""
    visibility: float = Field(default=75.0, ge=0, le=100)
    """Lowest SSIMULACRA2 of the stored photo, of the whole and around each face (enlarged to 256 px where it is
    smaller): 90 is not distinguishable side by side, 70 high quality, 50 medium. Both layers then share one
    perturbation (`joint`). 0: no such budget, but Algorithms 1 and 2: sign steps inside the bounds of `finetuning` and
    `zero_shot`."""
    protection: Protection = "dladiff"
    """Method of layer 1: this package's, or a compared one (dladiff/baselines), which uses its own schedule and has no
    layer 2. `finetuning.eta` overrides its bound; with `visibility`, 0 for these, its perturbation is scaled down to
    that score."""
    output: OutputConfig = OutputConfig()
    """File format."""
    finetuning: FinetuningConfig = FinetuningConfig()
    """Layer 1."""
    zero_shot: ZeroShotConfig = ZeroShotConfig()
    """Layer 2."""
    joint: JointConfig = JointConfig()
    """Both layers under the visibility budget."""
    experimental: ExperimentalConfig = ExperimentalConfig()
    """Options that are tried out, off by default."""

    @field_validator("held_out")
    @classmethod
    def _never_optimised(cls, held_out: tuple[str, ...], given: ValidationInfo) -> tuple[str, ...]:
        if both := set(given.data.get("encoders", ())) & set(held_out):
            raise ValueError(f"{', '.join(sorted(both))} stands in encoders too; a held-out encoder is never optimised")
        return held_out

    @property
    def pushes_latents(self) -> bool:
        """Whether layer 1 pushes the latents of VAEs."""
        wanted = self.layer_1 in ("latent", "both") or (self.layer_1 == "auto" and self.visibility > 0)
        return wanted and self.protection == "dladiff" and self.layers != "zero_shot"

    @property
    def trains_surrogate(self) -> bool:
        """Whether the whole model is needed: for Algorithm 1, or for a compared method."""
        sign_steps = self.layer_1 in ("adft", "both") or (self.layer_1 == "auto" and not self.visibility)
        return self.protection != "dladiff" or (sign_steps and self.layers != "zero_shot")

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        yield from self._layer_1_contradictions()
        if self.protection != "dladiff" and self.layers != "finetuning":
            yield f"layers: {self.protection} is a compared method and has no layer 2; leave layers out"
        if self.profile == "tiny" and not self.encoders and self.layers != "finetuning":
            yield "encoders: layer 2 needs at least one optimised encoder"
        if (weights := len(self.zero_shot.encoder_weights)) not in (0, len(self.encoders)):
            yield f"zero_shot.encoder_weights: {weights} weights for {len(self.encoders)} encoders"
        together = self.protection == "dladiff" and self.visibility > 0
        if self.experimental.geometry and not (together and self.layers != "finetuning" and self.encoders):
            yield (
                "experimental.geometry: needs visibility above 0, protection: dladiff, an encoder, and layers: both or "
                "zero_shot"
            )
        if not self.model:
            yield (
                "model: is empty; set method.model to a known model (dladiff models list), a folder in the diffusers "
                "layout, a hub id or s3://bucket/prefix"
            )

    def _layer_1_contradictions(self) -> Iterator[str]:
        if self.layer_1 != "auto" and self.protection != "dladiff":
            yield f"layer_1: {self.protection} is a compared method, and is layer 1 itself; leave layer_1 out"
        elif self.layer_1 != "auto" and self.layers == "zero_shot":
            yield "layer_1: layers: zero_shot has no layer 1; leave layer_1 out, or set layers: both"
        elif self.layer_1 in ("latent", "both") and not self.visibility:
            yield f"layer_1: {self.layer_1} needs a visibility budget; set visibility (75), or layer_1: adft"
        elif self.trains_surrogate and not self.pushes_latents and (self.joint.vaes or self.joint.log_variance):
            if self.protection == "dladiff":
                why = "layer_1: adft" if self.layer_1 == "adft" else "visibility: 0"
                yield f"joint.vaes, joint.log_variance: {why} pushes no latents; leave them out, or change it"


def method_config(profile: str, preset: str | None, overrides: Mapping[str, Any]) -> MethodConfig:
    """Build the configuration: defaults, then the profile, the preset, the overrides.

    Raises ConfigError with every fault at once: unknown names (with the nearest known one), wrong types, ranges.
    """
    faults: list[str] = []
    base = dict(_pick("profile", profile, PROFILES, faults))
    layered: list[Mapping[str, Any]] = [base]
    if preset is not None:
        layered.append(_pick("preset", preset, PRESETS, faults))
    if isinstance(memory := overrides.get("gpu_memory"), str) and memory in GPU_MEMORY:
        layered.append(GPU_MEMORY[memory])
    own = overrides.get("finetuning")
    if isinstance(own, Mapping) and own.get("surrogate") == "lora":
        layered.append(LOW_RANK["tiny" if profile == "tiny" else "full size"])
    if isinstance(method := overrides.get("protection"), str) and method in SCHEDULES:
        layered.append({"visibility": 0.0, "layers": "finetuning", "finetuning": {"eta": SCHEDULES[method].eta}})
    if "profile" in overrides:
        faults.append("profile: is no setting of the method; name it beside it")
    layered.append({key: value for key, value in overrides.items() if key != "profile"})
    merged: dict[str, Any] = {"profile": profile}
    for layer in layered:
        merge(merged, layer)
    config, wrong = MethodConfig.load(merged)
    if config is None or faults:
        raise ConfigError(faults + wrong)
    return config


def encoder_fault(config: MethodConfig) -> str | None:
    """Return what to do if layer 2 would run without an encoder, else None.

    It is no fault of the configuration as such: `plan` counts and estimates without it.
    """
    if config.encoders or config.layers == "finetuning":
        return None
    return f"encoders: the profile {config.profile} has no identity encoders of its own; {WHERE_ENCODERS_COME_FROM}"


def _pick(what: str, name: str, known: Mapping[str, dict[str, Any]], faults: list[str]) -> dict[str, Any]:
    if name in known:
        return known[name]
    faults.append(f"{what}: {name!r} is unknown{nearest(name, list(known))}; known: {', '.join(known)}")
    return {}
