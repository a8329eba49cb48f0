"""Python interface without Ray: `protect_photos` takes PIL images or arrays and returns PIL images."""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dladiff.core.arrays import Pixels
from dladiff.core.colour import GREY, grey_to_srgb, profile_of
from dladiff.errors import ConfigError, PhotoError
from dladiff.service import PhotoIn, PhotoOut, Protector
from dladiff.settings.presets import STRENGTHS

__all__ = ["Photo", "ProtectedPhoto", "Similarity", "protect_photos"]

Photo = Image.Image | NDArray[np.uint8]
"""A PIL image, or uint8 (height, width, 3) RGB."""
MIN_SIDE = 64  # px; the batch has the same limit


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """One encoder's highest cosine of any face to the original: `before` layer 2, and `after` it."""

    encoder: str
    optimised: bool
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class ProtectedPhoto:
    """One protected photo. Save `image` in a lossless format (PNG): the measurements hold for exactly these pixels."""

    image: Image.Image
    """RGB, or RGBA if the photo had transparency; upright, with the photo's colour profile (a grey one is applied)."""
    status: str
    """`protected`; `layer1_only` if no face was found; `failed` if no face was found and layer 1 is off."""
    reason: str
    """Why the protection is incomplete, or ""."""
    psnr: float
    """PSNR, dB; infinite if nothing changed."""
    ssim: float
    """Structural similarity to the original."""
    ssimulacra2: float
    """How little the change is seen at the size of a screen: 100 identical, 90 not distinguishable side by side, 70
    high quality, 50 medium, 30 low; no lower limit."""
    ssimulacra2_face: float
    """The same of the square around a face, the lowest of the faces; NaN without a face."""
    linf: float
    """Largest change of any channel, [0, 1] units."""
    similarity: list[Similarity]
    """One entry for each encoder; empty without a face."""


def protect_photos(
    photos: Iterable[Photo],
    *,
    clean: Iterable[Photo] = (),
    profile: str = "tiny",
    strength: str | None = None,
    preset: str | None = None,
    seed: int = 0,
    encoders: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> list[ProtectedPhoto]:
    """Return the protected photos of one person, in the order given.

    `clean`: photos of the same person for training layer 1's static surrogate; by default the photos themselves.
    `encoders`: the encoders of layer 2 (`embedded:residual`, an ONNX file, an InsightFace pack's name or folder,
    `clip:FOLDER`, `adapter:pulid` for all that an identity adapter reads); by default the profile's. `settings`: fields
    of MethodConfig that differ from the profile. The same photos, settings and seed give the same pixels on the CPU.
    Models stay in memory for later calls with the same settings and seed. `strength`: how visible the protection may be
    (`faint`, `balanced` or `strong`), the preset of this name; give it or `preset`.

    Raises PhotoError (it names the photo), ConfigError or ModelError: one line that says what to do.
    """
    read = _read_all("photos", photos)
    if not read:
        raise PhotoError("photos: is empty; give at least one photo")
    cleaned = [photo.pixels for photo in _read_all("clean", clean)]
    overrides = dict(settings or {}) | ({"encoders": list(encoders)} if encoders else {})
    chosen = {"profile": profile, "preset": _preset(strength, preset), "overrides": overrides}
    try:
        request = json.dumps(chosen, sort_keys=True)
    except TypeError as error:
        raise ConfigError([f"settings: {error}; give numbers, text, lists and dicts"]) from error
    inputs = [PhotoIn(key=str(i), pixels=photo.pixels) for i, photo in enumerate(read)]
    done = _protector(request, seed).protect_identity("", inputs, cleaned)
    return [_result(photo, out) for photo, out in zip(read, done.photos, strict=True)]


def _preset(strength: str | None, preset: str | None) -> str | None:
    if strength is None:
        return preset
    if preset is not None:
        raise ConfigError([f"strength: {strength!r} and preset: {preset!r} contradict; give one of them"])
    if not isinstance(strength, str) or strength not in STRENGTHS:
        raise ConfigError([f"strength: {strength!r} is unknown; known: {', '.join(STRENGTHS)}"])
    return strength


@lru_cache(maxsize=1)
def _protector(request: str, seed: int) -> Protector:
    return Protector(json.loads(request), seed, torch.get_num_threads())


@dataclass(frozen=True)
class _DecodedPhoto:
    pixels: Pixels
    alpha: NDArray[np.uint8] | None = None
    icc: bytes | None = None
    profile_fault: str = ""
    """Why its colour profile was dropped, or ""."""


def _read_all(name: str, photos: Iterable[Photo]) -> list[_DecodedPhoto]:
    if isinstance(photos, Image.Image | np.ndarray | str | bytes) or not isinstance(photos, Iterable):
        raise PhotoError(f"{name}: give a list of photos, not one {type(photos).__name__}")
    return [_read(f"{name}[{i}]", photo) for i, photo in enumerate(photos)]


def _read(name: str, photo: object) -> _DecodedPhoto:
    if isinstance(photo, Image.Image):
        found = _from_image(name, photo)
    elif isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3:
        found = _DecodedPhoto(np.ascontiguousarray(photo))
    else:
        what = f"{photo.dtype} {photo.shape}" if isinstance(photo, np.ndarray) else type(photo).__name__
        raise PhotoError(f"{name}: expected a PIL image or a uint8 array (height, width, 3), not {what}")
    height, width = found.pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise PhotoError(f"{name}: {width} x {height} px is too small; each side needs at least {MIN_SIDE} px")
    return found


def _from_image(name: str, image: Image.Image) -> _DecodedPhoto:
    """Return an image upright and in RGB. Raises PhotoError: damaged, or no standard conversion from its mode."""
    try:
        image.load()
    except Exception as error:  # Pillow raises exceptions of many classes for damaged files
        raise PhotoError(
            f"{name}: cannot be decoded ({type(error).__name__}); copy it again from its source"
        ) from error
    upright = image
    with contextlib.suppress(Exception):  # a photo with intact pixels is accepted although its EXIF data are damaged
        upright = ImageOps.exif_transpose(image)
    icc, fault = profile_of(upright)
    if upright.mode.startswith("I;16"):
        return _DecodedPhoto(grey_to_srgb(np.asarray(upright).astype(np.uint16), icc), profile_fault=fault)
    if upright.mode in ("I", "F", "CMYK", "LAB", "HSV", "YCbCr"):
        raise PhotoError(f'{name}: mode {upright.mode} is not supported; convert it with image.convert("RGB")')
    rgba = np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    rgb, alpha = np.ascontiguousarray(rgba[:, :, :3]), rgba[:, :, 3] if rgba.shape[2] == 4 else None
    if upright.mode in GREY:
        return _DecodedPhoto(grey_to_srgb(rgb[:, :, 0], icc), alpha, profile_fault=fault)
    return _DecodedPhoto(rgb, alpha, icc, fault)


def _result(photo: _DecodedPhoto, out: PhotoOut) -> ProtectedPhoto:
    stacked = out.pixels if photo.alpha is None else np.dstack([out.pixels, photo.alpha])
    image = Image.fromarray(np.ascontiguousarray(stacked))
    if photo.icc:
        image.info["icc_profile"] = photo.icc  # Pillow saves it with the image
    return ProtectedPhoto(
        image=image,
        status=out.status,
        reason="; ".join(text for text in (photo.profile_fault, out.reason) if text),
        psnr=out.psnr,
        ssim=out.ssim,
        ssimulacra2=out.ssimulacra2,
        ssimulacra2_face=out.ssimulacra2_face,
        linf=out.linf,
        similarity=[Similarity(**entry) for entry in out.similarity],
    )
