"""IP-Adapter FaceID (Ye et al. 2023): zero-shot customization from one photo's identity embedding.

The weights are read by diffusers' own loader. The thief's recogniser runs in onnxruntime on a crop aligned as
InsightFace does it, which is what the adapter's own demonstration feeds it.
"""

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

from dladiff.core.pixels import Pixels
from dladiff.errors import ModelError
from dladiff.evaluation.attackers.base import Base, copied, sample, with_parts
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
    """Generate from single photos in turn: image i shows the person of photo i modulo their number.

    A photo without a face is passed over; where none has one the thief has nothing to start from, and no image comes.
    Raises ModelError: weights missing or of another layout.
    """
    found = seen_faces(photos, settings.encoder)
    if not found:
        return {prompt: [] for prompt in prompts}
    sampler = with_parts(base, copied(base.pipe.unet), base.pipe.text_encoder)
    load_adapter(sampler, adapter_weights(settings.adapter, "IP-Adapter FaceID"), settings.scale)

    def show(face: SeenFace, prompt: str, numbers: Sequence[int]) -> list[Pixels]:
        unit = torch.from_numpy(face.embedding / np.linalg.norm(face.embedding)).to(base.device)
        pair = torch.stack([torch.zeros_like(unit), unit])[:, None]
        return sample(sampler, settings, prompt, numbers, seed, ip_adapter_image_embeds=[pair])

    return {prompt: in_turn(found, count, partial(show, prompt=prompt)) for prompt in prompts}


def check_faceid(base: Base, settings: AttackSettings) -> None:
    """Read the adapter and the recogniser. Raises ModelError."""
    adapter_weights(settings.adapter, "IP-Adapter FaceID")
    recogniser(settings.encoder)


def in_turn(found: Sequence["SeenFace"], count: int, show: Callable[..., list[Pixels]]) -> list[Pixels]:
    """Return `count` images, image i of face i modulo their number; `show(face, numbers=...)` makes those of a face.

    Diffusers' pipelines repeat the embeddings that they are given for each image of a batch: a batch shows one face.
    """
    images: dict[int, Pixels] = {}
    for turn, face in enumerate(found[:count]):
        numbers = range(turn, count, len(found))
        images |= zip(numbers, show(face, numbers=numbers), strict=True)
    return [images[i] for i in range(count)]


@dataclass(frozen=True)
class SeenFace:
    """What a zero-shot thief reads from one photo."""

    embedding: NDArray[np.float32]
    """`d`, as the recogniser gives it."""
    landmarks: NDArray[np.float64]
    """5 x 2, px of the photo."""


def seen_faces(photos: Sequence[Pixels], encoder: str) -> list[SeenFace]:
    """Return the photos' largest faces, fewer where photos have none. Raises ModelError."""
    session = recogniser(encoder)
    detector, found = CenterFaceDetector(), []
    for photo in photos:
        faces = detector.detect(photo)
        if faces:
            crop = cv2.warpAffine(photo, alignment_matrix(faces[0].landmarks), (112, 112), borderValue=0)
            x = ((crop.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]
            vector = np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0], np.float32)[0]
            found.append(SeenFace(vector, faces[0].landmarks))
    return found


def recogniser(encoder: str) -> Any:
    """Return a session of the model that the adapter listens to. Raises ModelError: not there, or no ONNX model."""
    if not Path(encoder).is_file():
        raise ModelError(f"no recognition model at {encoder or '(not named)'}: name its ONNX file (w600k_r50.onnx)")
    try:
        return onnx_session(encoder)
    except Exception as error:  # onnxruntime has a class for every kind
        raise ModelError(f"{encoder} is no ONNX model that can be loaded: name w600k_r50.onnx") from error


LAYOUTS = {
    "IP-Adapter FaceID": ("norm.weight", "ip-adapter-faceid_sd15.bin"),
    "InstantID": ("latents", "ip-adapter.bin"),
}
"""Adapter to a tensor that its image projection alone has, and the name of its published file, a pickle."""


def adapter_weights(where: str, kind: str) -> dict[str, dict[str, Tensor]]:
    """Read a file of an adapter's layout (`image_proj`, `ip_adapter`), or the only one in a folder.

    `kind` is a key of LAYOUTS. Raises ModelError.
    """
    mark, published = LAYOUTS[kind]
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
            f"{path} is a pickle, which can run code: python -m dladiff.evaluation.convert_adapter {path} "
            f"{path.with_suffix('.safetensors').name} makes safetensors of it; name that file"
        )
    try:
        parts = _read_parts(path)
    except Exception as error:  # damaged in any way: each library has classes of its own
        raise ModelError(
            f"{path} cannot be read as weights ({type(error).__name__}): fetch {published} again"
        ) from error
    if mark not in parts["image_proj"] or "1.to_k_ip.weight" not in parts["ip_adapter"]:
        raise ModelError(f"{path} is no {kind}: image_proj.{mark} or ip_adapter.1.to_k_ip.weight is missing")
    return parts


def _read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(path).items():
        part, _, name = key.partition(".")
        parts.get(part, {})[name] = value
    return parts


def load_adapter(sampler: Any, weights: dict[str, dict[str, Tensor]], scale: float) -> None:
    """Load the weights into a sampler by diffusers. Raises ModelError where they fit another base model."""
    try:
        sampler.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"this adapter does not fit the base model: {str(error).splitlines()[0]}") from error
    sampler.set_ip_adapter_scale(scale)
