"""What happens to photos before a thief trains on them: what sites, programs and purifiers do. Whole photos, uint8."""

import io
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from PIL import Image

from dladiff.core.pixels import Pixels, content_digest

Preprocess = Callable[[Pixels], Pixels]
"""One photo, h x w x 3, to another; `half`, `crop` and `social` say what becomes of its size."""

CROP = 0.9
BLUR_SIGMA = 1.0
NOISE_SIGMA = 8.0
TV_WEIGHT = 0.05
SOCIAL_SIDE = 1080


def jpeg(photo: Pixels, quality: int) -> Pixels:
    """Store as JPEG (Pillow, 4:2:0) and read again."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB")).copy()


def half(photo: Pixels) -> Pixels:
    """Resize to half the size and back (Lanczos); the size stays."""
    height, width = photo.shape[:2]
    small = _resized(photo, max(1, width // 2), max(1, height // 2))
    return _resized(small, width, height)


def crop(photo: Pixels) -> Pixels:
    """Keep the middle 90 % of each side; nothing is resized back, so the photo is smaller."""
    height, width = photo.shape[:2]
    h, w = max(1, round(height * CROP)), max(1, round(width * CROP))
    top, left = (height - h) // 2, (width - w) // 2
    return photo[top : top + h, left : left + w].copy()


def blur(photo: Pixels) -> Pixels:
    """Gaussian blur of 1 px standard deviation, whatever the photo's size."""
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), BLUR_SIGMA, borderType=cv2.BORDER_REPLICATE), np.uint8)


def noise(photo: Pixels) -> Pixels:
    """Add Gaussian noise of 8 grey levels; the photo's own bytes are its seed."""
    rng = np.random.default_rng(int.from_bytes(content_digest(photo)[:8], "big"))
    noisy = photo + rng.normal(0, NOISE_SIGMA, photo.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def total_variation(photo: Pixels) -> Pixels:
    """Total-variation denoising (Chambolle 2004, by scikit-image), weight 0.05 on [0, 1]."""
    from skimage.restoration import denoise_tv_chambolle

    smooth = denoise_tv_chambolle(photo.astype(np.float64) / 255, weight=TV_WEIGHT, channel_axis=2)
    return np.asarray(np.clip(np.rint(smooth * 255), 0, 255), np.uint8)


def social(photo: Pixels) -> Pixels:
    """Do what a social network does: longest side 1080 px at most (Lanczos), then JPEG 75; it stays that small."""
    height, width = photo.shape[:2]
    scale = min(1.0, SOCIAL_SIDE / max(height, width))
    if scale < 1:
        photo = _resized(photo, max(1, round(width * scale)), max(1, round(height * scale)))
    return jpeg(photo, 75)


def _resized(photo: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS)).copy()


PREPROCESSING: dict[str, Preprocess] = {
    "none": np.copy,
    "jpeg95": partial(jpeg, quality=95),
    "jpeg75": partial(jpeg, quality=75),
    "jpeg50": partial(jpeg, quality=50),
    "half": half,
    "crop": crop,
    "blur": blur,
    "noise": noise,
    "tv": total_variation,
    "social": social,
}
"""Name to preprocessing that needs no weights. Purifiers by diffusion: `dladiff.evaluation.purifiers`."""
