"""IP-Adapter FaceID (Ye et al. 2023): zero-shot customization from one photo's identity embedding.

The weights are read by diffusers' own loader. The thief's recogniser runs in onnxruntime on a crop aligned as
InsightFace does it, which is what the adapter's own demonstration feeds it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dladiff.errors import ModelError
from dladiff.evaluation.attackers.base import AttackSettings, Base, copied, sample, with_parts
from dladiff.faces import CenterFaceDetector, alignment_matrix
from dladiff.pixels import Pixels


def ip_adapter_faceid(
    base: Base, photos: Sequence[Pixels], settings: AttackSettings, prompts: Sequence[str], count: int, seed: int
) -> dict[str, list[Pixels]]:
    """Generate from single photos in turn: image i shows the person of photo i modulo their number.

    A photo without a face is passed over; where none has one the thief has nothing to start from, and no image comes.
    Raises ModelError: weights missing or of another layout.
    """
    faces = identity_embeddings(photos, settings.encoder)
    if not len(faces):
        return {prompt: [] for prompt in prompts}
    sampler = with_parts(base, copied(base.pipe.unet), base.pipe.text_encoder)
    load_adapter(sampler, adapter_weights(settings.adapter), settings.scale)
    shown = torch.from_numpy(faces[np.arange(count) % len(faces)]).to(base.device)
    return {prompt: sample(sampler, settings, prompt, count, seed, shown) for prompt in prompts}


def identity_embeddings(photos: Sequence[Pixels], encoder: str) -> NDArray[np.float32]:
    """Return the unit embeddings `n d` of the photos' largest faces; n is smaller where photos have none."""
    import onnxruntime

    if not Path(encoder).is_file():
        raise ModelError(f"no recognition model at {encoder or '(not named)'}: name its ONNX file (w600k_r50.onnx)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(encoder, options, providers=["CPUExecutionProvider"])
    detector, found = CenterFaceDetector(), []
    for photo in photos:
        faces = detector.detect(photo)
        if faces:
            crop = cv2.warpAffine(photo, alignment_matrix(faces[0].landmarks), (112, 112), borderValue=0)
            x = ((crop.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]
            vector = np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0], np.float32)[0]
            found.append(vector / np.linalg.norm(vector))
    return np.stack(found) if found else np.zeros((0, 0), np.float32)


def adapter_weights(where: str) -> dict[str, dict[str, Tensor]]:
    """Read a file of IP-Adapter FaceID's layout (`image_proj`, `ip_adapter`), or the only one in a folder."""
    path = Path(where or "?")
    if path.is_dir():
        files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
        if len(files) != 1:
            raise ModelError(f"{path} holds {len(files)} weight files; name IP-Adapter FaceID's own file")
        path = files[0]
    if not path.is_file():
        raise ModelError(f"no IP-Adapter FaceID weights at {where or '(not named)'}: name ip-adapter-faceid_sd15.bin")
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        for key, value in load_file(path).items():
            part, _, name = key.partition(".")
            parts.get(part, {})[name] = value
    else:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
        parts = {part: dict(loaded.get(part, {})) for part in parts}
    if "norm.weight" not in parts["image_proj"] or "1.to_k_ip.weight" not in parts["ip_adapter"]:
        raise ModelError(f"{path} is no IP-Adapter FaceID: image_proj.norm and ip_adapter.1.to_k_ip are missing")
    return parts


def load_adapter(sampler: Any, weights: dict[str, dict[str, Tensor]], scale: float) -> None:
    """Load the weights into a sampler by diffusers. Raises ModelError where they fit another base model."""
    try:
        sampler.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"this adapter does not fit the base model: {str(error).splitlines()[0]}") from error
    sampler.set_ip_adapter_scale(scale)
