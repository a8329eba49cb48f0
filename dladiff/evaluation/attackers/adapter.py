"""IP-Adapter FaceID (Ye et al. 2023): zero-shot customization from one photo's identity embedding.

Diffusers' own loader reads the weights. The attacker's face recogniser runs in onnxruntime on a crop that is aligned
as InsightFace aligns it, as in the adapter's own demonstration.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from dladiff.core.arrays import Pixels
from dladiff.errors import ModelError
from dladiff.evaluation.attackers.base import Base, sample, sampling_pipeline
from dladiff.evaluation.attacks import Attack, AttackSettings, shipped
from dladiff.faces.detect import CenterFaceDetector, alignment_matrix
from dladiff.faces.onnx_session import onnx_session

ATTACK = Attack(
    name="ip_adapter_faceid",
    function="ip_adapter_faceid",
    check="check_faceid",
    kind="zero-shot",
    paper="Ye et al. 2023",
    year=2023,
    about="nothing; input: one photo's identity embedding, by diffusers' loader",
    source="IP-Adapter's FaceID demonstration; the user brings weights and recogniser",
    full_size=AttackSettings(sampling_steps=30),
    tiny=AttackSettings(
        guidance=6.0,
        adapter=shipped("adapter/residual.safetensors"),
        encoder=shipped("encoders/residual.onnx"),
    ),
)


def ip_adapter_faceid(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Generate `count` images per prompt: image i is conditioned on face i modulo the number of faces.

    Photos without a face are skipped; if no photo has one, the lists are empty.
    Raises ModelError: weights are missing or have another layout.
    """
    faces = input_faces(photos, settings.encoder)
    if not faces:
        return {prompt: [] for prompt in prompts}
    sampler = sampling_pipeline(base, copy.deepcopy(base.pipe.unet), base.pipe.text_encoder)
    load_adapter(sampler, adapter_weights(settings.adapter, "IP-Adapter FaceID"), settings.scale)

    def generate(face: InputFace, prompt: str, numbers: Sequence[int]) -> list[Pixels]:
        unit = torch.from_numpy(face.embedding / np.linalg.norm(face.embedding)).to(base.device)
        pair = torch.stack([torch.zeros_like(unit), unit])[:, None]
        return sample(sampler, settings, prompt, numbers, seed, ip_adapter_image_embeds=[pair])

    return {prompt: cycle_faces(faces, count, partial(generate, prompt=prompt)) for prompt in prompts}


def check_faceid(base: Base, settings: AttackSettings) -> None:
    """Check that the adapter and the recogniser can be loaded. Raises ModelError."""
    adapter_weights(settings.adapter, "IP-Adapter FaceID")
    recogniser(settings.encoder)


def cycle_faces(faces: Sequence["InputFace"], count: int, generate: Callable[..., list[Pixels]]) -> list[Pixels]:
    """Return `count` images: image i is of face i modulo the number of faces.

    `generate(face, numbers=...)` returns the images of one face. Diffusers' pipelines apply one embedding to a whole
    batch, so each batch is of one face.
    """
    images: dict[int, Pixels] = {}
    for first, face in enumerate(faces[:count]):
        numbers = range(first, count, len(faces))
        images |= zip(numbers, generate(face, numbers=numbers), strict=True)
    return [images[i] for i in range(count)]


@dataclass(frozen=True)
class InputFace:
    """The largest face of one photo: the input of a zero-shot attack."""

    embedding: NDArray[np.float32]
    """`d`, not normalised."""
    landmarks: NDArray[np.float64]
    """5 x 2, px of the photo."""


def input_faces(photos: Sequence[Pixels], encoder: str) -> list[InputFace]:
    """Return the largest face of each photo; photos without a face are skipped. Raises ModelError."""
    session = recogniser(encoder)
    detector, result = CenterFaceDetector(), []
    for photo in photos:
        faces = detector.detect(photo)
        if faces:
            crop = cv2.warpAffine(photo, alignment_matrix(faces[0].landmarks), (112, 112), borderValue=0)
            x = ((crop.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]
            vector = np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0], np.float32)[0]
            result.append(InputFace(vector, faces[0].landmarks))
    return result


def recogniser(encoder: str) -> Any:
    """Return an onnxruntime session of the adapter's recogniser. Raises ModelError: missing, or not an ONNX model."""
    if not Path(encoder).is_file():
        raise ModelError(f"no recognition model at {encoder or '(not named)'}: name its ONNX file (w600k_r50.onnx)")
    try:
        return onnx_session(encoder)
    except Exception as error:  # onnxruntime raises many unrelated classes
        raise ModelError(f"{encoder} cannot be loaded as an ONNX model: name w600k_r50.onnx") from error


LAYOUTS = {
    "IP-Adapter FaceID": ("norm.weight", "ip-adapter-faceid_sd15.bin"),
    "InstantID": ("latents", "ip-adapter.bin"),
}
"""Adapter to a tensor that only its image projection has, and to the name of its published file, a pickle."""


def adapter_weights(where: str, kind: str) -> dict[str, dict[str, Tensor]]:
    """Return an adapter's tensors as {"image_proj": {...}, "ip_adapter": {...}}.

    `where` is a safetensors file, or a folder that holds exactly one weights file. `kind` is a key of LAYOUTS.
    Raises ModelError.
    """
    required, published = LAYOUTS[kind]
    path = Path(where or "?")
    if path.is_dir():
        files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
        if len(files) != 1:
            raise ModelError(f"{path} holds {len(files)} weight files; name {kind}'s own file")
        path = files[0]
    if not path.is_file():
        raise ModelError(f"no {kind} weights at {where or '(not named)'}: name {published}")
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path} is a pickle, which can run code: convert it with python -m dladiff.evaluation.convert_adapter "
            f"{path} {path.with_suffix('.safetensors').name}; name the new file"
        )
    try:
        parts = _read_parts(path)
    except Exception as error:  # a damaged file raises errors of several libraries
        raise ModelError(
            f"{path} cannot be read as weights ({type(error).__name__}): fetch {published} again"
        ) from error
    if required not in parts["image_proj"] or "1.to_k_ip.weight" not in parts["ip_adapter"]:
        raise ModelError(f"{path} is no {kind}: image_proj.{required} or ip_adapter.1.to_k_ip.weight is missing")
    return parts


def _read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(path).items():
        part, _, name = key.partition(".")
        parts.get(part, {})[name] = value
    return parts


def load_adapter(sampler: Any, weights: dict[str, dict[str, Tensor]], scale: float) -> None:
    """Load the weights into a pipeline by diffusers' loader. Raises ModelError: they belong to another base model."""
    try:
        sampler.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"this adapter does not fit the base model: {str(error).splitlines()[0]}") from error
    sampler.set_ip_adapter_scale(scale)
