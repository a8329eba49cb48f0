"""Protection of one identity's photos: layer 1, then layer 2."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch

from dladiff.baselines.methods import compared_layer
from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn, PhotoOut
from dladiff.core.field import Photos, Squares
from dladiff.core.pixels import Images, to_uint8, whole_levels
from dladiff.core.randomness import stream
from dladiff.diffusion.base_model import BaseModel
from dladiff.diffusion.surrogate import Surrogate
from dladiff.diffusion.vae import WeightedVae
from dladiff.faces.detect import Detector, Face
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers import finetuning as finetuning_layer
from dladiff.layers import geometry, joint
from dladiff.layers import zero_shot as zero_shot_layer
from dladiff.layers.stop_rule import FaceReader, StopRule, similarity_rows, still_above
from dladiff.photo import Work, lowest_score, measured, within_budget
from dladiff.settings.schema import MethodConfig


@dataclass(frozen=True)
class Models:
    """The networks of one run, on one device."""

    surrogate: BaseModel | None
    """The whole base model; None where no layer needs more than VAEs."""
    encoders: Sequence[IdentityEncoder]
    held_out: Sequence[IdentityEncoder]
    detector: Detector
    device: torch.device
    vaes: Sequence[WeightedVae] = ()
    """The VAEs whose latents are pushed."""

    @property
    def whole(self) -> BaseModel:
        """The whole base model. Raises AssertionError where it was not loaded, which is a bug."""
        assert self.surrogate is not None, "this configuration loads no base model"
        return self.surrogate


@dataclass(frozen=True)
class Protected:
    """The protected photos in input order, with seconds and step counts of each stage."""

    photos: list[PhotoOut]
    seconds: dict[str, float]
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    """Stage to kind of step to count: "training" or "perturbation" (each square and each face counts separately)."""
    trace: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Chart to series to one value for each step; empty unless `trace` is set."""


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

    works = _prepared(photos, models, config)
    lap("detect")
    together = config.protection == "dladiff" and config.visibility > 0
    if config.experimental.geometry:
        _displace(works, clean, models, config, seed)
        lap("geometry")
        steps["geometry"] = {"perturbation": geometry.STEPS}
    if config.protection != "dladiff":
        _compared_layer(works, clean, models, config, seed)
        lap("finetuning_layer")
    elif config.trains_surrogate:
        static = _static(works, clean, models, config, seed, losses)
        lap("static_surrogate")
        x, streams = _views(works, seed)
        perturbation = Photos([work.start(config) for work in works], [len(work.views) for work in works])
        finetuning_layer.perturb(models.whole, static, x, config.finetuning, streams, losses, perturbation)
        lap("finetuning_layer")
        steps["static_surrogate"] = {"training": config.finetuning.iter_ft}
        steps["finetuning_layer"] = finetuning_layer.iterations(config.finetuning, len(x))
    if together:
        outs = {work.photo.key: _joint_layers(work, models, config, seed) for work in works}
        lap("joint_layers")
        steps["joint_layers"] = {"perturbation": sum(work.steps for work in works)}
    else:
        outs = {work.photo.key: _second_layer(work, models, config, seed) for work in works}
        lap("zero_shot_layer")
        steps["zero_shot_layer"] = {"perturbation": sum(work.steps for work in works)}
    charts = {} if losses is None else _charts(losses, works, models.encoders)
    return Protected([outs[p.key] for p in photos], seconds, steps, charts)


def _charts(
    losses: finetuning_layer.Losses, works: list[Work], encoders: Sequence[IdentityEncoder]
) -> dict[str, dict[str, list[float]]]:
    """Return a chart for each stage of layer 1, and for each photo charts of what its steps reached, faces in order."""
    charts = {f"Layer 1, {stage}": {"loss": torch.stack(values).tolist()} for stage, values in losses.items()}
    for work in works:
        lines, key = zip(*work.cosines, strict=True), work.photo.key
        charts[f"Layer 2, {key}"] = {e.name: list(line) for e, line in zip(encoders, lines, strict=False)}
        if work.shifts:
            charts[f"Layer 1, {key}"] = {"latent shift": work.shifts}
        if work.scores:
            charts[f"Visibility, {key}"] = {"SSIMULACRA2 in the loop": work.scores}
    return charts


def _prepared(photos: Sequence[PhotoIn], models: Models, config: MethodConfig) -> list[Work]:
    return sorted((Work.of(p, models.detector, models.device, config) for p in photos), key=lambda work: work.name)


def _clean_views(
    works: list[Work], clean: Sequence[Pixels], models: Models, config: MethodConfig
) -> tuple[Images, list[str]]:
    """Return the views of the clean photos that fine-tuning learns from, `m 3 r r`, and the photos' digests."""
    sources = works
    if clean:
        sources = _prepared([PhotoIn(key="", pixels=pixels) for pixels in clean], models, config)
    return torch.cat([work.learnt() for work in sources]), [work.name for work in sources]


def _static(
    works: list[Work],
    clean: Sequence[Pixels],
    models: Models,
    config: MethodConfig,
    seed: int,
    losses: finetuning_layer.Losses | None,
) -> Any:
    """Return the static surrogate, fine-tuned on the clean photos."""
    views, names = _clean_views(works, clean, models, config)
    return finetuning_layer.static_surrogate(
        models.whole, views, config.finetuning, stream(seed, "static", *names), losses
    )


def _compared_layer(
    works: list[Work], clean: Sequence[Pixels], models: Models, config: MethodConfig, seed: int
) -> None:
    """Set the perturbations of a compared method in place of layer 1's."""
    views, names = _clean_views(works, clean, models, config)
    x, streams = _views(works, seed)
    whole = cast(Surrogate, models.whole)  # loading refuses compared methods on transformers
    deltas = compared_layer(whole, views, x, config, streams, stream(seed, "compared", *names))
    for work, own in zip(works, torch.split(deltas, [len(work.views) for work in works]), strict=True):
        work.perturbation = Squares(work.crops, config.finetuning.eta)
        work.perturbation.delta = own.mean(1, keepdim=True).expand_as(own) if work.codec.grey else own


def _views(works: list[Work], seed: int) -> tuple[Images, list[torch.Generator]]:
    """Return all views of the identity's photos, `n 3 r r`, and a random stream for each."""
    streams = [stream(seed, "layer1", work.name, str(i)) for work in works for i in range(len(work.views))]
    return torch.cat([work.crops for work in works]), streams


def _second_layer(work: Work, models: Models, config: MethodConfig, seed: int) -> PhotoOut:
    x = work.original()
    layer1 = work.layer1(config)
    if config.visibility:  # a compared method, held to the same visibility
        layer1 = within_budget(work, layer1, config.visibility)
    after_layer1 = (x + layer1).clamp(0, 1)
    passes = models.detector.passes_near(work.photo.pixels, work.faces)
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
    reasons = still_above(optimised, current, config.zero_shot)
    return _stored(work, to_uint8(current), to_uint8(after_layer1), passes, models, config, reasons)


def _displace(works: list[Work], clean: Sequence[Pixels], models: Models, config: MethodConfig, seed: int) -> None:
    """Displace the person's face in each photo by one field, optimised on the clean set, else on the photos.

    So all tasks of an identity that share a clean set get the same field.
    """
    photos = [(work.photo.pixels, work.faces) for work in works]
    learnt = [(pixels, models.detector.detect(pixels)) for pixels in clean] or photos
    encoders, zero_shot = geometry.of_faces(models.encoders, config.zero_shot)
    if not encoders:
        return
    networks = geometry.Networks(encoders, models.detector, models.device)
    moved = geometry.displace(photos, learnt, networks, zero_shot, config.experimental.geometry, seed)
    for work, photo in zip(works, moved, strict=True):
        work.moved = photo


def _joint_layers(work: Work, models: Models, config: MethodConfig, seed: int) -> PhotoOut:
    """Optimise both layers together, under the visibility budget."""
    assert models.vaes or not config.pushes_latents, "this configuration pushes latents, and no VAE was loaded"
    x, base = work.original(), work.unperturbed()
    learnt = x if work.moved else None
    passes = models.detector.passes_near(work.photo.pixels, work.faces)
    size, recompute = config.finetuning.batch_photos, config.finetuning.recompute
    networks = joint.Networks(models.vaes, models.encoders, config.resolution, size, recompute)
    delta, tasks = torch.zeros_like(x), {}
    if work.perturbation:  # Algorithm 1 came first
        outer = whole_levels(config.joint.eta)
        delta = within_budget(work, work.layer1(config).clamp(-outer, outer), config.visibility)
    parts = work.parts(config)
    for number, part in enumerate(parts):
        faces = []
        if (i := part.face) is not None:
            reader = FaceReader(x, work.faces[i], passes[i], models.encoders)
            rule = StopRule(
                reader, models.detector, config.zero_shot, stream(seed, "views", work.name, str(i)), work.codec
            )
            own = stream(seed, "layer2", work.name, str(i))
            tasks[i] = joint.FaceTask(reader.bases, reader.targets, rule, own)
            faces = [tasks[i]]
        score = partial(lowest_score, work, part.squares)
        alone, last = config.layers == "zero_shot", number + 1 == len(parts)
        canvas = joint.Canvas(part, faces, config.visibility, score, alone, last, learnt)
        generator = stream(seed, "joint", work.name, str(number))
        settings = (config.joint, config.zero_shot)
        delta, course = joint.optimise(base, delta, canvas, networks, settings, generator, work.codec)
        work.steps += config.joint.steps
        work.scores += course.scores
        work.shifts += course.shifts
    delta = within_budget(work, delta, config.visibility)
    work.delta = delta
    reasons = []
    for i, task in tasks.items():
        work.cosines += task.history
        if (worst := max(task.rule(base + delta))) > config.zero_shot.threshold:
            reasons.append(
                f"face {i + 1}: similarity {worst:.2f}, above {config.zero_shot.threshold}: visibility "
                f"{config.visibility:g} allows no more"
            )
    return _stored(work, work.perturbed(delta), work.photo.pixels, passes, models, config, reasons)


def _stored(
    work: Work,
    encoded: Pixels,
    before: Pixels,
    passes: Sequence[Sequence[Sequence[Face]]],
    models: Models,
    config: MethodConfig,
    reasons: list[str],
) -> PhotoOut:
    """Return the measured photo. `before`: the photo that the manifest's similarities before layer 2 are of."""
    x, encoders = work.original(), [*models.encoders, *models.held_out]
    readers = [FaceReader(x, face, near, encoders) for face, near in zip(work.faces, passes, strict=True)]
    skipped = len(work.faces) - config.max_squares
    if config.layers != "zero_shot" and config.region == "face" and skipped > 0:
        reasons.append(f"{skipped} of {len(work.faces)} faces got no layer 1: max_squares is {config.max_squares}")
    if config.output.format == "jpeg" and work.photo.transparent:
        reasons.append("stored as PNG: JPEG holds no transparency")
    before, after = (work.codec.stored(pixels) for pixels in (before, encoded))
    rows = similarity_rows(readers, len(models.encoders), before, after, models.detector)
    return measured(work, encoded, after, config, rows, "; ".join(reasons))
