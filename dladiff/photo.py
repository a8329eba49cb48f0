"""Input and output of one photo, and the check and measurement of its protected bytes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dladiff.core import quality
from dladiff.core.arrays import Pixels
from dladiff.core.codec import Codec
from dladiff.core.exchange import PhotoIn, PhotoOut
from dladiff.faces.detect import Face
from dladiff.layers.zero_shot import Box
from dladiff.settings.schema import MethodConfig


def measured(
    photo: PhotoIn,
    faces: list[Face],
    pixels: tuple[Pixels, Pixels],
    config: MethodConfig,
    codec: Codec,
    similarity: list[dict[str, Any]],
    retained: float,
    reason: str,
) -> PhotoOut:
    """Return the protected photo with measurements of its stored pixels.

    `pixels`: as encoded, and as a reader decodes them. Raises AssertionError if the encoded perturbation exceeds its
    bound, which is a bug.
    """
    original, (encoded, final) = photo.pixels, pixels
    mask = _face_mask(faces, original.shape[0], original.shape[1])
    bound = config.finetuning.eta + config.zero_shot.eta
    outside, inside = quality.linf(original, encoded, ~mask), quality.linf(original, encoded, mask)
    if outside > config.finetuning.eta + 1e-6 or inside > bound + 1e-6:
        raise AssertionError(
            f"perturbation outside its bound: {outside * 255:.1f} outside faces, {inside * 255:.1f} inside"
        )
    status = "protected" if faces and config.layers != "finetuning" else "layer1_only"
    if not faces and config.layers != "finetuning":
        reason = "no face found: layer 2 has nothing to protect"
        if config.layers == "zero_shot":
            status, reason = "failed", "no face found, and layers: zero_shot leaves layer 1 out: nothing protects it"
    if config.protection == "none":
        reason = "protection: none leaves the photo as it is"
    return PhotoOut(
        key=photo.key,
        pixels=encoded,
        status=status,
        reason=reason,
        faces=[
            {"box": [float(v) for v in f.box], "landmarks": f.landmarks.astype(float).tolist(), "score": float(f.score)}
            for f in faces
        ],
        linf=quality.linf(original, final),
        linf_face=quality.linf(original, final, mask),
        psnr=quality.psnr(original, final),
        psnr_face=quality.psnr(original, final, mask) if faces else float("inf"),
        ssim=quality.ssim(original, final),
        similarity=similarity,
        retained=retained,
        codec=codec,
    )


def _face_mask(faces: list[Face], height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=bool)
    for face in faces:
        box = Box.of(face, height, width)
        mask[box.y0 : box.y1, box.x0 : box.x1] = True
    return mask
