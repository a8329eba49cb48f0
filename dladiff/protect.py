"""Protection of one identity's photos: layer 1, then layer 2."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dladiff.baselines.methods import compared_layer
from dladiff.core import tiles
from dladiff.core.arrays import Pixels
from dladiff.core.codec import Codec, fitting_quality, is_grey
from dladiff.core.exchange import PhotoIn, PhotoOut
from dladiff.core.field import Encoded, Field, Perturbation, Photos, Squares
from dladiff.core.pixels import Images, content_digest, to_float, to_uint8, whole_levels
from dladiff.core.randomness import stream
from dladiff.core.views import View, attacker_views
from dladiff.diffusion.surrogate import Surrogate
from dladiff.faces.detect import Detector, Face
from dladiff.faces.encoder import IdentityEncoder
from dladiff.faces.given import with_given
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
    views: list[View]
    """The working squares of layer 1, or the attacker's views of the whole photo."""
    whole: bool
    """Whether layer 1 is one field over the whole photo instead of a perturbation for each view."""
    crops: Images
    """The views `n 3 r r` of the original."""
    codec: Codec
    perturbation: Squares | Field | None = None
    """Layer 1; None where it did not run."""
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
        x, streams = _views(works, seed)
        perturbation = _start(works, models, config)
        finetuning_layer.perturb(models.surrogate, static, x, config.finetuning, streams, losses, perturbation)
        lap("finetuning_layer")
        steps["static_surrogate"] = {"training": config.finetuning.iter_ft}
        steps["finetuning_layer"] = finetuning_layer.iterations(config.finetuning, len(x))
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
    faces = with_given(models.detector.detect(photo.pixels), photo)
    height, width = photo.pixels.shape[:2]
    whole = config.protection == "dladiff"
    if config.region == "face" and faces:
        squares = [tiles.face_square(f.landmarks) for f in faces[: config.max_squares]]
        views = [View.of(f"face {i}", square) for i, square in enumerate(squares, start=1)]
        whole &= any(a.overlaps(b) for a, b in itertools.combinations(squares, 2))
    elif whole:
        views = attacker_views(height, width, [f.box for f in faces], config.max_squares)
    else:
        squares = tiles.covering_squares(height, width, config.max_squares)
        views = [View.of(f"square {i}", square) for i, square in enumerate(squares, start=1)]
    crops = torch.cat([view.read(x, config.resolution) for view in views])
    return _Work(photo, content_digest(photo.pixels).hex(), faces, views, whole, crops, _codec(photo, config))


def _codec(photo: PhotoIn, config: MethodConfig) -> Codec:
    """Return how the photo is stored."""
    grey, quality = is_grey(photo.pixels), config.output.quality
    if config.output.format == "png" or photo.transparent:
        return Codec("png", grey=grey)
    if photo.file_bytes:
        quality = fitting_quality(photo.pixels, quality, photo.file_bytes, config.finetuning.eta, grey)
    return Codec("jpeg", quality, grey)


def _clean_views(
    works: list[_Work], clean: Sequence[Pixels], models: Models, config: MethodConfig
) -> tuple[Images, list[str]]:
    """Return the views of the clean photos that fine-tuning learns from, `m 3 r r`, and the photos' digests.

    These are the square of the largest face, or, in `region: photo`, the middle square and the largest face's view.
    """
    sources = works
    if clean:
        sources = sorted((_prepare(PhotoIn(key="", pixels=p), models, config) for p in clean), key=lambda w: w.name)
    return torch.cat([w.crops[: _learnt(w)] for w in sources]), [w.name for w in sources]


def _learnt(work: _Work) -> int:
    """Return how many of a clean photo's first views fine-tuning learns from."""
    return 2 if [view.name for view in work.views[:2]] == ["middle", "face 1"] else 1


def _static(
    works: list[_Work],
    clean: Sequence[Pixels],
    models: Models,
    config: MethodConfig,
    seed: int,
    losses: finetuning_layer.Losses | None,
) -> Any:
    """Return the static surrogate, fine-tuned on the clean photos."""
    views, names = _clean_views(works, clean, models, config)
    return finetuning_layer.static_surrogate(
        models.surrogate, views, config.finetuning, stream(seed, "static", *names), losses
    )


def _compared_layer(
    works: list[_Work], clean: Sequence[Pixels], models: Models, config: MethodConfig, seed: int
) -> None:
    """Set the perturbations of a compared method in place of layer 1's."""
    views, names = _clean_views(works, clean, models, config)
    x, streams = _views(works, seed)
    shared_generator = stream(seed, "compared", *names)
    deltas = compared_layer(models.surrogate, views, x, config, streams, shared_generator)
    for work, own in zip(works, torch.split(deltas, [len(work.views) for work in works]), strict=True):
        work.perturbation = Squares(work.crops, config.finetuning.eta)
        work.perturbation.delta = own


def _views(works: list[_Work], seed: int) -> tuple[Images, list[torch.Generator]]:
    """Return all views of the identity's photos, `n 3 r r`, and a random stream for each."""
    streams = [stream(seed, "layer1", work.name, str(i)) for work in works for i in range(len(work.views))]
    return torch.cat([work.crops for work in works]), streams


def _start(works: list[_Work], models: Models, config: MethodConfig) -> Photos:
    """Set each photo's perturbation to zero and return all of them as one."""
    bounds = (config.finetuning.eta, config.finetuning.min_psnr)
    parts: list[Perturbation] = []
    for work in works:
        if work.whole:
            photo = to_float(work.photo.pixels).to(models.device)
            work.perturbation = Field(photo, work.views, config.resolution, *bounds, grey=work.codec.grey)
        else:
            work.perturbation = Squares(work.crops, *bounds, grey=work.codec.grey)
        seen = partial(_seen, work, models, config)
        parts.append(Encoded(work.perturbation, seen) if work.codec.lossy else work.perturbation)
    return Photos(parts, [len(work.views) for work in works])


def _seen(work: _Work, models: Models, config: MethodConfig) -> Tensor:
    """Return the change of each view by layer 1 in the decoded file, `n 3 r r`."""
    x = to_float(work.photo.pixels).to(models.device)
    layer1 = _at_full_size(work, x, whole_levels(config.finetuning.eta))
    stored = to_float(work.codec.stored(to_uint8(x + layer1))).to(x.device)
    return torch.cat([view.read(stored, config.resolution) for view in work.views]) - work.crops


def _at_full_size(work: _Work, x: Images, eta: float) -> Tensor:
    """Return layer 1 at the photo's size, `1 3 h w`, clipped to `eta`: the field, or the enlarged squares.

    Where the squares of a compared method overlap, their mean.
    """
    if isinstance(work.perturbation, Field):
        return work.perturbation.at_full_size().clamp(-eta, eta)
    layer1, count = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for delta, view in zip(work.perturbation.delta if work.perturbation else (), work.views, strict=False):
        square = tiles.Square(view.x, view.y, view.width)
        tiles.add_square(layer1, tiles.spread(delta[None], square, eta), square)
        tiles.add_square(count, torch.ones_like(count[..., :1, :1]).expand(1, 1, square.side, square.side), square)
    return (layer1 / count.clamp_min(1)).clamp_(-eta, eta)


def _retained(work: _Work, models: Models, config: MethodConfig) -> float:
    """Return the share of layer 1 that an attacker's view of the stored photo contains; the smallest of all views.

    What was optimised in a view is compared with the change of that view's pixels: cut from the rounded photo and
    resized, as an attacker does.
    """
    if not work.perturbation:
        return 1.0
    found, wanted = _seen(work, models, config), work.perturbation.views()
    return min(tiles.retained(a, b) for a, b in zip(wanted, found, strict=True))


def _second_layer(work: _Work, models: Models, config: MethodConfig, seed: int) -> PhotoOut:
    x = to_float(work.photo.pixels).to(models.device)
    layer1 = _at_full_size(work, x, whole_levels(config.finetuning.eta))
    retained = _retained(work, models, config)
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
            views = stream(seed, "views", work.name, str(i))
            rule = StopRule(reader, models.detector, config.zero_shot, views, work.codec)
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
                work.codec,
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
    if config.output.format == "jpeg" and work.photo.transparent:
        reasons.append("stored as PNG: JPEG holds no transparency")
    final = to_uint8(current)
    before, after = (work.codec.stored(pixels) for pixels in (to_uint8(after_layer1), final))
    rows = similarity_rows(readers, len(models.encoders), before, after, models.detector)
    return measured(work.photo, work.faces, (final, after), config, work.codec, rows, retained, "; ".join(reasons))


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
