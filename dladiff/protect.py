"""Both layers, in order, for the photos of one identity: the one call the batch makes."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dladiff import finetuning_layer, quality, region, zero_shot_layer
from dladiff.config import MethodConfig
from dladiff.faces import Detector, Face, alignment_matrix, warp
from dladiff.identity import IdentityEncoder
from dladiff.pixels import Pixels, to_float, to_uint8
from dladiff.randomness import stream
from dladiff.surrogate import Surrogate

VIEWS = 6
"""Jittered alignments that the stop rule reads beside the two exact ones."""


@dataclass(frozen=True)
class Models:
    """The networks of one run, resident on one device."""

    surrogate: Surrogate
    encoders: Sequence[IdentityEncoder]
    held_out: Sequence[IdentityEncoder]
    detector: Detector
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class PhotoIn:
    """One photo to protect: a key unique in its identity, and h x w x 3 RGB bytes."""

    key: str
    pixels: Pixels


@dataclass(frozen=True, kw_only=True)
class PhotoOut:
    """One protected photo with what was measured on its bytes (units: [0, 1] for linf, dB for psnr)."""

    key: str
    pixels: Pixels
    status: str
    reason: str
    faces: list[dict[str, Any]]
    linf: float
    linf_face: float
    psnr: float
    psnr_face: float
    ssim: float
    similarity: list[dict[str, Any]]
    retained: float


@dataclass(frozen=True)
class Protected:
    """The photos, in the order they came in, and the seconds of each stage."""

    photos: list[PhotoOut]
    seconds: dict[str, float]


@dataclass
class _Work:
    photo: PhotoIn
    name: str
    x: Tensor
    faces: list[Face]
    squares: list[region.Square]
    layer1: Tensor
    retained: list[float] = field(default_factory=list)


def protect(
    photos: Sequence[PhotoIn], clean: Sequence[Pixels], models: Models, config: MethodConfig, seed: int
) -> Protected:
    """Protect one identity. `clean` is the set X_clean, or empty for the photos themselves.

    Every photo's random stream is named by its content, and photos are worked on in the order of their content,
    so neither the order given nor the worker changes a byte.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = round(now - clock, 3), now

    works = sorted((_prepare(p, models, config) for p in photos), key=lambda w: w.name)
    lap("detect")
    if config.layers != "zero_shot":
        static = _static(works, clean, models, config, seed)
        lap("static_surrogate")
        _first_layer(works, static, models, config, seed)
        lap("finetuning_layer")
    outs = {}
    for work in works:
        outs[work.photo.key] = _second_layer(work, models, config, seed)
    lap("zero_shot_layer")
    return Protected([outs[p.key] for p in photos], seconds)


def _prepare(photo: PhotoIn, models: Models, config: MethodConfig) -> _Work:
    x = to_float(photo.pixels).to(models.device)
    faces = models.detector.detect(photo.pixels)
    height, width = photo.pixels.shape[:2]
    if config.region == "face" and faces:
        squares = [region.face_square(f.landmarks) for f in faces[: config.max_squares]]
    else:
        squares = region.covering_squares(height, width, config.max_squares)
    name = hashlib.sha256(repr(photo.pixels.shape).encode() + photo.pixels.tobytes()).hexdigest()
    return _Work(photo, name, x, faces, squares, torch.zeros_like(x))


def _static(works: list[_Work], clean: Sequence[Pixels], models: Models, config: MethodConfig, seed: int) -> Any:
    """Fine-tune the static surrogate on one square of each clean photo (the largest face's, or the first)."""
    if clean:
        sources = sorted((_prepare(PhotoIn(key="", pixels=p), models, config) for p in clean), key=lambda w: w.name)
    else:
        sources = works
    squares = torch.cat([region.cut(w.x, w.squares[0], config.resolution) for w in sources])
    names = [w.name for w in sources]
    return finetuning_layer.static_surrogate(
        models.surrogate, squares, config.finetuning, stream(seed, "static", *names)
    )


def _first_layer(works: list[_Work], static: Any, models: Models, config: MethodConfig, seed: int) -> None:
    jobs = [(work, i, square) for work in works for i, square in enumerate(work.squares)]
    size = config.finetuning.batch_photos
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        x = torch.cat([region.cut(work.x, square, config.resolution) for work, _, square in batch])
        streams = [stream(seed, "layer1", work.name, str(i)) for work, i, _ in batch]
        deltas = finetuning_layer.perturb(models.surrogate, static, x, config.finetuning, streams)
        for (work, _, square), delta in zip(batch, deltas[:, None], strict=True):
            region.add_square(work.layer1, region.spread(delta, square, config.finetuning.eta), square)
    for work in works:
        work.layer1.clamp_(-config.finetuning.eta, config.finetuning.eta)
    for work, _, square in jobs:
        work.retained.append(_retained(work, square, config))


def _retained(work: _Work, square: region.Square, config: MethodConfig) -> float:
    """Check the rounded original-size perturbation again after the attacker's resize to the working resolution."""
    rounded = to_float(to_uint8(work.x + work.layer1)).to(work.x.device)
    before, wanted, found = (
        region.cut(image, square, config.resolution) for image in (work.x, work.x + work.layer1, rounded)
    )
    return region.retained(wanted - before, found - before)


def _second_layer(work: _Work, models: Models, config: MethodConfig, seed: int) -> PhotoOut:
    first = (work.x + work.layer1).clamp(0, 1)
    every = [*models.encoders, *models.held_out]
    targets = [[_embed(e, work.x, face) for e in every] for face in work.faces]
    current = first
    reasons = []
    if config.layers != "finetuning":
        layer2 = torch.zeros_like(work.x)
        for i, face in enumerate(work.faces):
            wanted = targets[i][: len(models.encoders)]

            views = zero_shot_layer.jitter(
                alignment_matrix(face.landmarks), config.zero_shot, stream(seed, "views", work.name, str(i)), VIEWS
            )

            def similarity(
                photo: Tensor, face: Face = face, wanted: list[Tensor] = wanted, views: Any = views
            ) -> float:
                read = _as_attacker(to_uint8(photo), face, wanted, models.encoders, models, both=True)
                return max(*read, *_through(views, photo, wanted, models.encoders))

            patch, box, steps = zero_shot_layer.perturb_face(
                current,
                face,
                wanted,
                models.encoders,
                config.zero_shot,
                stream(seed, "layer2", work.name, str(i)),
                similarity,
            )
            layer2[..., box.y0 : box.y1, box.x0 : box.x1] += patch
            layer2.clamp_(-config.zero_shot.eta, config.zero_shot.eta)
            current = (first + layer2).clamp(0, 1)
            if steps >= config.zero_shot.max_steps and similarity(current) > config.zero_shot.ths:
                reasons.append(f"face {i + 1}: similarity still above {config.zero_shot.ths} after {steps} steps")
    return _measure(work, to_uint8(first), to_uint8(current), targets, models, config, "; ".join(reasons))


def _measure(
    work: _Work,
    first: Pixels,
    final: Pixels,
    targets: list[list[Tensor]],
    models: Models,
    config: MethodConfig,
    reason: str,
) -> PhotoOut:
    original = work.photo.pixels
    mask = _face_mask(work, original.shape[0], original.shape[1])
    bound = config.finetuning.eta + config.zero_shot.eta
    outside, inside = quality.linf(original, final, ~mask), quality.linf(original, final, mask)
    if outside > config.finetuning.eta + 1e-6 or inside > bound + 1e-6:
        raise AssertionError(
            f"perturbation outside its bound: {outside * 255:.1f} outside faces, {inside * 255:.1f} inside"
        )
    every = [*models.encoders, *models.held_out]
    before = [_as_attacker(first, f, t, every, models) for f, t in zip(work.faces, targets, strict=True)]
    after = [_as_attacker(final, f, t, every, models) for f, t in zip(work.faces, targets, strict=True)]
    similarity = [
        {
            "encoder": encoder.name,
            "optimised": i < len(models.encoders),
            "before": max(row[i] for row in before),
            "after": max(row[i] for row in after),
        }
        for i, encoder in enumerate(every)
        if work.faces
    ]
    none = not work.faces and config.layers != "finetuning"
    return PhotoOut(
        key=work.photo.key,
        pixels=final,
        status="layer1_only" if none or config.layers == "finetuning" else "protected",
        reason="no face found: layer 2 has nothing to protect" if none else reason,
        faces=[
            {"box": [float(v) for v in f.box], "landmarks": f.landmarks.astype(float).tolist(), "score": float(f.score)}
            for f in work.faces
        ],
        linf=quality.linf(original, final),
        linf_face=inside,
        psnr=quality.psnr(original, final),
        psnr_face=quality.psnr(original, final, mask) if work.faces else float("inf"),
        ssim=quality.ssim(original, final),
        similarity=similarity,
        retained=float(np.mean(work.retained)) if work.retained else 1.0,
    )


def _through(
    views: NDArray[np.float64], photo: Tensor, targets: Sequence[Tensor], encoders: Sequence[IdentityEncoder]
) -> list[float]:
    """Highest cosine of each encoder over jittered alignments: other detectors place landmarks a few pixels off."""
    matrices = torch.from_numpy(views).to(photo)
    with torch.no_grad():
        crops = warp(photo.expand(len(views), -1, -1, -1), matrices)
        return [float((e(crops) * t).sum(1).max()) for e, t in zip(encoders, targets, strict=True)]


def _face_mask(work: _Work, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=bool)
    for face in work.faces:
        box = zero_shot_layer.Box.of(face, height, width)
        mask[box.y0 : box.y1, box.x0 : box.x1] = True
    return mask


def _embed(encoder: IdentityEncoder, photo: Tensor, face: Face) -> Tensor:
    matrix = torch.from_numpy(alignment_matrix(face.landmarks)).to(photo)[None]
    with torch.no_grad():
        out: Tensor = encoder(warp(photo, matrix))
    return out


def _as_attacker(
    pixels: Pixels,
    face: Face,
    targets: Sequence[Tensor],
    encoders: Sequence[IdentityEncoder],
    models: Models,
    both: bool = False,
) -> list[float]:
    """Cosines on the stored bytes, the face detected and aligned anew.

    With `both`, or where the detector no longer finds the face, the original alignment is read too: the higher counts.
    """
    photo = to_float(pixels).to(models.device)
    found = [f for f in models.detector.detect(pixels) if _overlap(f, face) > 0.4]
    readings = found[:1] + ([face] if both or not found else [])
    rows = [[float((_embed(e, photo, r) * t).sum()) for e, t in zip(encoders, targets, strict=True)] for r in readings]
    return [max(column) for column in zip(*rows, strict=True)]


def _overlap(a: Face, b: Face) -> float:
    """Intersection over union of two boxes."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    common = max(0.0, width) * max(0.0, height)
    areas = [(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in (a, b)]
    return common / max(1e-9, sum(areas) - common)
