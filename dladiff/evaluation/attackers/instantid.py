"""InstantID (Wang et al. 2024): zero-shot customization by identity tokens and a ControlNet on face landmarks.

A resampler maps the recogniser's embedding to 16 tokens. The UNet attends to them in an image cross-attention beside
that of the prompt, as in IP-Adapter. IdentityNet, a ControlNet, takes a drawing of the five landmarks as its image and
the tokens in place of the prompt. The resampler is that of IP-Adapter Plus, so diffusers' own loader reads it.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel, DPMSolverMultistepScheduler, StableDiffusionXLControlNetPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dladiff.core.arrays import Pixels
from dladiff.errors import ModelError
from dladiff.evaluation.attackers.adapter import (
    InputFace,
    adapter_weights,
    cycle_faces,
    input_faces,
    load_adapter,
    recogniser,
)
from dladiff.evaluation.attackers.base import Base, sample
from dladiff.evaluation.attacks import Attack, AttackSettings

ATTACK = Attack(
    name="instantid",
    function="instantid",
    check="check_instantid",
    kind="zero-shot",
    paper="Wang et al. 2024",
    year=2024,
    about="nothing; input: one photo's identity embedding and landmarks",
    source="InstantID's demonstration; the user brings weights and recogniser",
    sdxl=AttackSettings(sampling_steps=30, guidance=5.0, scale=0.8, control_scale=0.8),
)

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""RGB of the eyes, the nose and the corners of the mouth in IdentityNet's training drawings."""


class IdentityNet(ControlNetModel):  # type: ignore[misc]
    """A ControlNet conditioned on identity tokens instead of the prompt that the pipeline passes."""

    tokens: Tensor | None = None
    """`2 n d`: the unconditional tokens, then those of the face."""

    def forward(self, sample: Tensor, *args: Any, **keywords: Any) -> Any:
        """Run the ControlNet on a batch `2b c h w`, unconditional half first, with `tokens` for the prompt."""
        assert self.tokens is not None
        tokens = self.tokens.repeat_interleave(len(sample) // 2, dim=0)
        return super().forward(sample, *args, **(keywords | {"encoder_hidden_states": tokens}))


def instantid(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Generate `count` images per prompt: image i has the identity and the landmarks of face i modulo their number.

    Photos without a face are skipped; if no photo has one, the lists are empty.
    Raises ModelError: weights are missing or have another layout.
    """
    faces = input_faces(photos, settings.encoder)
    if not faces:
        return {prompt: [] for prompt in prompts}
    sampler = instantid_pipeline(base, settings)

    def generate(face: InputFace, prompt: str, numbers: Sequence[int]) -> list[Pixels]:
        embedding = torch.from_numpy(face.embedding).to(base.device)
        pair = torch.stack([torch.zeros_like(embedding), embedding])[:, None, None]
        with torch.no_grad():
            sampler.controlnet.tokens = sampler.unet.encoder_hid_proj([pair])[0][:, 0]
        extra = {
            "ip_adapter_image_embeds": [pair],
            "image": landmark_image(face.landmarks, base.resolution),
            "controlnet_conditioning_scale": settings.control_scale,
        }
        return sample(sampler, settings, prompt, numbers, seed, **extra)

    return {prompt: cycle_faces(faces, count, partial(generate, prompt=prompt)) for prompt in prompts}


def check_instantid(base: Base, settings: AttackSettings) -> None:
    """Check that the adapter, IdentityNet and the recogniser can be loaded. Raises ModelError."""
    instantid_pipeline(base, settings)
    recogniser(settings.encoder)


def instantid_pipeline(base: Base, settings: AttackSettings) -> Any:
    """Return an SDXL pipeline of the base's parts, IdentityNet and the adapter. Raises ModelError."""
    pipe, weights = base.pipe, adapter_weights(settings.adapter, "InstantID")
    sampler = StableDiffusionXLControlNetPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        text_encoder_2=pipe.text_encoder_2,
        tokenizer=pipe.tokenizer,
        tokenizer_2=pipe.tokenizer_2,
        unet=copy.deepcopy(pipe.unet),
        controlnet=identity_net(settings.control).to(base.device),
        scheduler=DPMSolverMultistepScheduler.from_config(pipe.scheduler.config),
        add_watermarker=False,
    )
    sampler.set_progress_bar_config(disable=True)
    load_adapter(sampler, weights, settings.scale)
    return sampler


def identity_net(folder: str) -> IdentityNet:
    """Load IdentityNet, frozen, fp32. Raises ModelError."""
    if not (Path(folder or "?") / "config.json").is_file():
        raise ModelError(f"no IdentityNet at {folder or '(not named)'}: name InstantID's folder ControlNetModel")
    try:
        network = IdentityNet.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"the IdentityNet in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    frozen: IdentityNet = network.eval().requires_grad_(False).float()
    return frozen


def landmark_image(landmarks: NDArray[np.float64], side: int) -> Image.Image:
    """Draw five landmarks (5 x 2, px) on a black square: dim bars to the nose, a bright disc at each.

    Source: `draw_kps` of InstantID's demonstration.
    """
    drawing = np.zeros((side, side, 3), np.uint8)
    nose = landmarks[2]
    for i in (0, 1, 3, 4):
        point, colour = landmarks[i], COLOURS[i]
        middle, (dx, dy) = (point + nose) / 2, point - nose
        angle = int(math.degrees(math.atan2(dy, dx)))
        axes = (int(math.hypot(dx, dy) / 2), 4)
        bar = cv2.ellipse2Poly((int(middle[0]), int(middle[1])), axes, angle, 0, 360, 1)
        cv2.fillConvexPoly(drawing, bar, colour)
    drawing = (drawing * 0.6).astype(np.uint8)
    for point, colour in zip(landmarks, COLOURS, strict=True):
        cv2.circle(drawing, (int(point[0]), int(point[1])), 10, colour, -1)
    return Image.fromarray(drawing)
