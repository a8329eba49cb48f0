"""Protection of one identity's photos: layer 1, then layer 2."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dladiff.baselines.methods import compared_layer
from dladiff.core import tiles
from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn, PhotoOut
from dladiff.core.pixels import Images, content_digest, to_float, to_uint8, whole_levels
from dladiff.core.randomness import stream
from dladiff.diffusion.surrogate import Surrogate
from dladiff.faces.detect import Detector, Face
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers import finetuning as finetuning_layer
from dladiff.layers import zero_shot as zero_shot_layer
from dladiff.layers.stop_rule import FaceReader, StopRule, similarity_rows
from dladiff.photo import measured
from dladiff.settings.schema import MethodConfig, ZeroShotConfig


@dataclass(frozen=True)
class Models:
    """The networks of one run, on one device."""

    surrogate: Surrogate
    encoders: Sequence[IdentityEncoder]
    held_out: Sequence[IdentityEncoder]
    detector: Detector
    device: torch.device


@dataclass(frozen=True)
class Protected:
    """The protected photos in input order, with seconds and step counts of each stage."""

    photos: list[PhotoOut]
    seconds: dict[str, float]
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    """Stage to kind of step to count: "training" or "perturbation" (each square and each face counts separately)."""
    trace: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Chart to series to one value for each step; empty unless `trace` is set."""


@dataclass
class _Work:
    """State of one photo. At the photo's own size it holds only the bytes, to save memory."""

    photo: PhotoIn
    name: str
    faces: list[Face]
    squares: list[tiles.Square]
    crops: Images
    deltas: list[Tensor] = field(default_factory=list)
    steps: int = 0
    """Steps of layer 2, summed over the faces."""
    cosines: list[list[float]] = field(default_factory=list)
    """Cosine of each optimised encoder at each of these steps."""


def protect(
    photos: Sequence[PhotoIn],
    clean: Sequence[Pixels],
    models: Models,
    config: MethodConfig,
    seed: int,
    trace: bool = False,
) -> Protected:
    """Return the protected photos of one identity: layer 1 (Algorithm 1), then layer 2 (Algorithm 2) for each face.

    `clean`: the set X_clean; if empty, the photos themselves. `trace`: keep the losses. Random streams are named by a
    photo's content, and photos are processed in the order of their digests, so that the result depends neither on
    their order nor on the worker.
    """
    seconds: dict[str, float] = {}
    steps: dict[str, dict[str, int]] = {}
    losses: finetuning_layer.Losses | None = {} if trace else None
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = round(now - clock, 3), now

    works = sorted((_prepare(p, models, config) for p in photos), key=lambda w: w.name)
    lap("detect")
    if config.protection != "dladiff":
        _compared_layer(works, clean, models, config, seed)
        lap("finetuning_layer")
    elif config.layers != "zero_shot":
        static = _static(works, clean, models, config, seed, losses)
        lap("static_surrogate")
        x, streams = _squares(works, seed)
        deltas = finetuning_layer.perturb(models.surrogate, static, x, config.finetuning, streams, losses)
        _keep(works, deltas)
        lap("finetuning_layer")
        steps["static_surrogate"] = {"training": config.finetuning.iter_ft}
        squares = sum(len(work.squares) for work in works)
        steps["finetuning_layer"] = finetuning_layer.iterations(config.finetuning, squares)
    outs = {work.photo.key: _second_layer(work, models, config, seed) for work in works}
    lap("zero_shot_layer")
    steps["zero_shot_layer"] = {"perturbation": sum(work.steps for work in works)}
    charts = {} if losses is None else _charts(losses, works, models.encoders)
    return Protected([outs[p.key] for p in photos], seconds, steps, charts)


def _charts(
    losses: finetuning_layer.Losses, works: list[_Work], encoders: Sequence[IdentityEncoder]
) -> dict[str, dict[str, list[float]]]:
    """Return a chart for each stage of layer 1, and for each photo with a series for each encoder, faces in order."""
    charts = {f"Layer 1, {stage}": {"loss": torch.stack(values).tolist()} for stage, values in losses.items()}
    for work in works:
        lines = zip(*work.cosines, strict=True)
        charts[f"Layer 2, {work.photo.key}"] = {e.name: list(line) for e, line in zip(encoders, lines, strict=False)}
    return charts


def _prepare(photo: PhotoIn, models: Models, config: MethodConfig) -> _Work:
    x = to_float(photo.pixels).to(models.device)
    faces = models.detector.detect(photo.pixels)
    height, width = photo.pixels.shape[:2]
    if config.region == "face" and faces:
        squares = [tiles.face_square(f.landmarks) for f in faces[: config.max_squares]]
    else:
        squares = tiles.covering_squares(height, width, config.max_squares)
    crops = torch.cat([tiles.cut(x, square, config.resolution) for square in squares])
    name = content_digest(photo.pixels).hex()
    return _Work(photo, name, faces, squares, crops)


def _clean_squares(
    works: list[_Work], clean: Sequence[Pixels], models: Models, config: MethodConfig
) -> tuple[Images, list[str]]:
    """Return one square of each clean photo (of the largest face, or the first), `m 3 r r`, and the photos' digests."""
    sources = works
    if clean:
        sources = sorted((_prepare(PhotoIn(key="", pixels=p), models, config) for p in clean), key=lambda w: w.name)
    return torch.cat([w.crops[:1] for w in sources]), [w.name for w in sources]


def _static(
    works: list[_Work],
    clean: Sequence[Pixels],
    models: Models,
    config: MethodConfig,
    seed: int,
    losses: finetuning_layer.Losses | None,
) -> Any:
    """Return the static surrogate, fine-tuned on the clean photos."""
    squares, names = _clean_squares(works, clean, models, config)
    return finetuning_layer.static_surrogate(
        models.surrogate, squares, config.finetuning, stream(seed, "static", *names), losses
    )


def _compared_layer(
    works: list[_Work], clean: Sequence[Pixels], models: Models, config: MethodConfig, seed: int
) -> None:
    """Set the perturbations of a compared method in place of layer 1's."""
    squares, names = _clean_squares(works, clean, models, config)
    x, streams = _squares(works, seed)
    shared_generator = stream(seed, "compared", *names)
    _keep(works, compared_layer(models.surrogate, squares, x, config, streams, shared_generator))


def _squares(works: list[_Work], seed: int) -> tuple[Images, list[torch.Generator]]:
    """Return all squares of the identity, `n 3 r r`, and a random stream for each."""
    streams = [stream(seed, "layer1", work.name, str(i)) for work in works for i in range(len(work.squares))]
    return torch.cat([work.crops for work in works]), streams


def _keep(works: list[_Work], deltas: Tensor) -> None:
    own_deltas = torch.split(deltas, [len(work.squares) for work in works])
    for work, own in zip(works, own_deltas, strict=True):
        work.deltas = list(own[:, None])


def _at_full_size(work: _Work, x: Images, eta: float) -> Tensor:
    """Return layer 1 at the photo's size, `1 3 h w`: the sum of the enlarged squares, clipped to the bound."""
    layer1 = torch.zeros_like(x)
    for delta, square in zip(work.deltas, work.squares, strict=False):  # no deltas where layer 1 did not run
        tiles.add_square(layer1, tiles.spread(delta, square, eta), square)
    return layer1.clamp_(-eta, eta)


def _retained(work: _Work, x: Images, layer1: Tensor, config: MethodConfig) -> float:
    """Return the mean share of layer 1 that survives rounding and the attacker's resize to the working resolution."""
    if not work.deltas:
        return 1.0
    rounded = to_float(to_uint8(x + layer1)).to(x.device)
    retained = []
    for square in work.squares:
        before, wanted, found = (tiles.cut(image, square, config.resolution) for image in (x, x + layer1, rounded))
        retained.append(tiles.retained(wanted - before, found - before))
    return float(np.mean(retained))


def _second_layer(work: _Work, models: Models, config: MethodConfig, seed: int) -> PhotoOut:
    x = to_float(work.photo.pixels).to(models.device)
    layer1 = _at_full_size(work, x, whole_levels(config.finetuning.eta))
    retained = _retained(work, x, layer1, config)
    after_layer1 = (x + layer1).clamp(0, 1)
    del layer1
    passes = models.detector.passes_near(work.photo.pixels, work.faces)
    all_encoders = [*models.encoders, *models.held_out]
    readers = [FaceReader(x, face, near, all_encoders) for face, near in zip(work.faces, passes, strict=True)]
    current, optimised = after_layer1, []
    if config.layers != "finetuning":
        bound = whole_levels(config.zero_shot.eta)
        layer2 = torch.zeros_like(x)
        for i, face in enumerate(work.faces):
            reader = FaceReader(x, face, passes[i], models.encoders)
            rule = StopRule(reader, models.detector, config.zero_shot, stream(seed, "views", work.name, str(i)))
            box = zero_shot_layer.Box.of(face, *x.shape[-2:])
            patch, steps, cosines = zero_shot_layer.perturb_face(
                current,
                box,
                reader.bases,
                reader.targets,
                models.encoders,
                config.zero_shot,
                stream(seed, "layer2", work.name, str(i)),
                rule,
            )
            work.steps += steps
            work.cosines += cosines
            layer2[..., box.y0 : box.y1, box.x0 : box.x1] += patch
            layer2.clamp_(-bound, bound)
            current = (after_layer1 + layer2).clamp(0, 1)
            optimised.append((rule, box, steps))
    reasons = _still_above(optimised, current, config.zero_shot)
    if (
        config.layers != "zero_shot"
        and config.region == "face"
        and (skipped := len(work.faces) - config.max_squares) > 0
    ):
        reasons.append(f"{skipped} of {len(work.faces)} faces got no layer 1: max_squares is {config.max_squares}")
    final = to_uint8(current)
    rows = similarity_rows(readers, len(models.encoders), to_uint8(after_layer1), final, models.detector)
    return measured(work.photo, work.faces, final, config, rows, retained, "; ".join(reasons))


def _still_above(
    optimised: Sequence[tuple[StopRule, zero_shot_layer.Box, int]], photo: Images, config: ZeroShotConfig
) -> list[str]:
    """Return a message for each face whose similarity is above the threshold in the final photo.

    A face that stopped below the threshold is checked again if another face's box overlaps its own, because the sum of
    their perturbations is clipped to the bound.
    """
    lines = []
    for i, (rule, box, steps) in enumerate(optimised):
        overlapped = any(box.overlaps(other) for j, (_, other, _) in enumerate(optimised) if j != i)
        if (overlapped or steps >= config.max_steps) and max(rule(photo)) > config.threshold:
            after = f"{steps} steps" + " and those of a face that overlaps it" * overlapped
            lines.append(f"face {i + 1}: similarity still above {config.threshold} after {after}")
    return lines
