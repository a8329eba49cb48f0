"""Preprocessing of photos before an attack: what websites and programs do to whole photos (h x w x 3, uint8)."""

import io

import cv2
import numpy as np
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import content_digest
from dladiff.evaluation.preprocessing_records import Preprocessing

PREPROCESSINGS = (
    Preprocessing(name="none", function="unchanged", about="nothing"),
    Preprocessing(name="jpeg95", function="jpeg", settings={"quality": 95}, about="JPEG of quality 95"),
    Preprocessing(name="jpeg75", function="jpeg", settings={"quality": 75}, about="JPEG of quality 75"),
    Preprocessing(name="jpeg50", function="jpeg", settings={"quality": 50}, about="JPEG of quality 50"),
    Preprocessing(name="half", function="half", about="half the size and back, Lanczos"),
    Preprocessing(name="crop", function="crop", about="the middle 90 % of each side, not resized back"),
    Preprocessing(name="blur", function="blur", about="Gaussian blur, 1 px"),
    Preprocessing(name="noise", function="noise", about="Gaussian noise of 8 grey levels, seeded by the photo"),
    Preprocessing(name="tv", function="total_variation", about="total variation (Chambolle 2004), weight 0.05"),
    Preprocessing(name="blur_jpeg75", function="blur_jpeg", about="Gaussian blur, 1 px, then JPEG of quality 75"),
    Preprocessing(name="jpeg75_half", function="jpeg_half", about="JPEG of quality 75, then half the size and back"),
    Preprocessing(name="social", function="social", about="longest side 1080 px at most, JPEG 75"),
)

CROP = 0.9
BLUR_SIGMA = 1.0
NOISE_SIGMA = 8.0
TV_WEIGHT = 0.05
SOCIAL_SIDE = 1080
CHAIN_QUALITY = 75
"""JPEG quality in a chain."""


def unchanged(photo: Pixels) -> Pixels:
    """Return a copy."""
    return photo.copy()


def jpeg(photo: Pixels, quality: int) -> Pixels:
    """Encode as JPEG (Pillow, 4:2:0) and decode again."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB")).copy()


def half(photo: Pixels) -> Pixels:
    """Resize to half the size and back (Lanczos); the size stays."""
    height, width = photo.shape[:2]
    small = _resized(photo, max(1, width // 2), max(1, height // 2))
    return _resized(small, width, height)


def crop(photo: Pixels) -> Pixels:
    """Keep the middle 90 % of each side; the result is smaller than the photo."""
    height, width = photo.shape[:2]
    h, w = max(1, round(height * CROP)), max(1, round(width * CROP))
    top, left = (height - h) // 2, (width - w) // 2
    return photo[top : top + h, left : left + w].copy()


def blur(photo: Pixels) -> Pixels:
    """Gaussian blur of 1 px standard deviation."""
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), BLUR_SIGMA, borderType=cv2.BORDER_REPLICATE), np.uint8)


def noise(photo: Pixels) -> Pixels:
    """Add Gaussian noise of 8 grey levels, seeded by the photo's pixels."""
    rng = np.random.default_rng(int.from_bytes(content_digest(photo)[:8], "big"))
    noisy = photo + rng.normal(0, NOISE_SIGMA, photo.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def total_variation(photo: Pixels) -> Pixels:
    """Denoise by total variation (Chambolle 2004, by scikit-image), weight 0.05 on [0, 1]."""
    from skimage.restoration import denoise_tv_chambolle

    smooth = denoise_tv_chambolle(photo.astype(np.float64) / 255, weight=TV_WEIGHT, channel_axis=2)
    return np.asarray(np.clip(np.rint(smooth * 255), 0, 255), np.uint8)


def blur_jpeg(photo: Pixels) -> Pixels:
    """Blur by 1 px, then JPEG 75: what an attacker may do against a perturbation, without a network."""
    return jpeg(blur(photo), CHAIN_QUALITY)


def jpeg_half(photo: Pixels) -> Pixels:
    """JPEG 75, then half the size and back: a photo from a website, shown smaller."""
    return half(jpeg(photo, CHAIN_QUALITY))


def social(photo: Pixels) -> Pixels:
    """Downscale to a longest side of at most 1080 px (Lanczos), then JPEG 75, as social networks do."""
    height, width = photo.shape[:2]
    scale = min(1.0, SOCIAL_SIDE / max(height, width))
    if scale < 1:
        photo = _resized(photo, max(1, round(width * scale)), max(1, round(height * scale)))
    return jpeg(photo, 75)


def _resized(photo: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS)).copy()
