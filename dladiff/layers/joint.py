"""Both layers under one visibility budget: one perturbation of a part of a photo, optimised by Adam.

It raises the latent shift of the views that fine-tuning would learn from, and lowers the cosines of the identity
encoders, as far as SSIMULACRA2 of the changed part stays above a target.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.codec import BLOCK, Codec
from dladiff.core.pixels import Images
from dladiff.core.transforms import blur
from dladiff.diffusion.vae import WeightedVae
from dladiff.faces.cuts import PhotoCut
from dladiff.faces.detect import Matrix
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers.budget import Budget
from dladiff.layers.latents import LatentShift
from dladiff.layers.parts import Part, fade
from dladiff.layers.stop_rule import JITTER_SHARE, StopRule
from dladiff.layers.zero_shot import Box, FaceView, ImageGrid, draw_augmentation, floor, jitter
from dladiff.settings.schema import JointConfig, ZeroShotConfig

BETAS = (0.9, 0.99)
"""Adam's decay rates."""
SPREAD = 0.3
"""Added to Adam's denominator, relative to its mean: cells of next to no gradient, such as a plain background, hardly
move."""
FIRST_NOISE = 0.5 / 255
"""Largest value of the first perturbation: at zero, the latent shift has no gradient."""
RATE, HINGE_WEIGHTS = 1.15, (0.2, 1.0, 50.0)
"""Largest factor of the identity weight's change in one step, and its lowest, first and highest value."""
COSINE_SPREAD = 0.03
"""Distance from the floor at which the identity weight changes by the full factor."""
SCORE_MARGIN = 0.05
"""How far SSIMULACRA2 in torch may differ from the package's, which the manifest holds."""
CHECK_EVERY = 30
"""Steps between two checks of the rounded photo: its exact visibility, and the stop rule."""
FITTING = (1.1, 4)
"""Largest factor by which a finished perturbation is enlarged, and the halvings that find the factor."""
HOMING = 2.0
"""Points by which the target rises at a check that finds the stop rule met, where nothing else uses the budget."""


@dataclass
class FaceTask:
    """One face of a canvas, and what layer 2 optimises there."""

    bases: Matrix
    targets: Sequence[Tensor]
    rule: StopRule
    generator: Generator
    floors: list[float] = field(default_factory=list)
    history: list[list[float]] = field(default_factory=list)
    """Highest cosine of each encoder at each step; of one that the step left out, the last known."""
    worst: list[float] = field(default_factory=list)
    """Each encoder's highest cosine at the last check."""


@dataclass(frozen=True)
class Course:
    """What the steps of one canvas reached, for a trace."""

    scores: list[float] = field(default_factory=list)
    """Lowest SSIMULACRA2 of the whole canvas and its regions, as the loop compares them."""
    shifts: list[float] = field(default_factory=list)
    """Squared latent shift relative to the latents' variance, geometric mean over the step's views."""


@dataclass(frozen=True)
class Canvas:
    """A part of a photo, and what is optimised there."""

    part: Part
    faces: Sequence[FaceTask]
    target: float
    """Lowest SSIMULACRA2 of the whole part and of its squares."""
    score: Callable[[Tensor], float]
    """Returns the lowest of these in the stored file, for a perturbation of the photo `1 3 h w`."""
    alone: bool = False
    """Whether layer 2 alone uses the budget: what the stop rule does not need is given back."""
    last: bool = True
    """Whether no other canvas of the photo follows, which would need what this one leaves of the budget."""
    learnt: Images | None = None
    """The photo `1 3 h w` whose latents the push moves away from; None: the one that is perturbed."""


@dataclass(frozen=True)
class Networks:
    """What the losses are of."""

    vaes: Sequence[WeightedVae]
    encoders: Sequence[IdentityEncoder]
    resolution: int
    batch_views: int
    """Views encoded in one step."""
    recompute: bool = False
    """Gradient checkpointing in the VAEs."""


def optimise(
    original: Images,
    start: Tensor,
    canvas: Canvas,
    networks: Networks,
    configs: tuple[JointConfig, ZeroShotConfig],
    generator: Generator,
    codec: Codec,
) -> tuple[Tensor, Course]:
    """Return the perturbation `1 3 h w` of a photo after the optimisation of one canvas, and the steps' course.

    `original`: the photo `1 3 h w`; `start`: the perturbation so far.
    """
    config, zero_shot = configs
    run = _Run(original, start, canvas, networks, configs, codec)
    delta = run.first(generator)
    moments = (torch.zeros_like(delta), torch.zeros_like(delta))
    best = None
    for step in range(config.steps):
        gradient = run.gradient(delta, step)
        rate = config.step_size * (1 - step / config.steps)
        delta = run.moved(delta, rate * _adam(gradient, moments, step))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == config.steps:
            whole = run.pasted(delta)
            run.correct(canvas.score(whole))
            for face in canvas.faces:
                face.worst = face.rule(original + whole)
                recent = np.mean(face.history[-CHECK_EVERY // 3 :], axis=0)
                face.floors = [floor(w, float(m), zero_shot) for w, m in zip(face.worst, recent, strict=True)]
            if canvas.alone and all(max(face.worst) <= zero_shot.threshold for face in canvas.faces):
                best = whole  # visible at most as the one before: the target only rises
                run.budget.target = min(99.0, run.budget.target + HOMING)
    return run.fitted(delta) if best is None else best, run.course


class _Run:
    """The losses of one canvas, and its perturbation's grid."""

    def __init__(
        self,
        original: Images,
        start: Tensor,
        canvas: Canvas,
        networks: Networks,
        configs: tuple[JointConfig, ZeroShotConfig],
        codec: Codec,
    ) -> None:
        self.config, self.zero_shot = configs
        self.canvas, self.networks, self.codec, self.start = canvas, networks, codec, start
        box = canvas.part.box
        self.inside = (..., slice(box.y0, box.y1), slice(box.x0, box.x1))
        self.grid = ImageGrid(box, canvas.part.pitch)
        self.clean, self.before = (_resized(image[self.inside], self.grid.shape) for image in (original, start))
        scale = [self.grid.shape[0] / (box.y1 - box.y0), self.grid.shape[1] / (box.x1 - box.x0)]
        regions = [
            (
                int((x0 - box.x0) * scale[1]),
                int((y0 - box.y0) * scale[0]),
                int((x1 - box.x0) * scale[1]),
                int((y1 - box.y0) * scale[0]),
            )
            for x0, y0, x1, y1 in canvas.part.squares
        ]
        whole = box == Box(0, 0, original.shape[-1], original.shape[-2])
        self.budget = Budget(self.clean, regions, canvas.target, self.config.colour, whole)
        block = BLOCK if codec.lossy else 1
        cuts = list(dict.fromkeys(encoder.cut for encoder in networks.encoders))
        around = self._around(original) if any(isinstance(cut, PhotoCut) for cut in cuts) else original
        self.views = [FaceView(around, face.bases, box, self.grid, block, cuts) for face in canvas.faces]
        for weighted in networks.vaes:
            weighted.vae.recompute(networks.recompute)
        sizes, views = (networks.resolution, networks.batch_views), canvas.part.views
        pushed = ((box, self.grid), networks.vaes, sizes, self.config.log_variance, canvas.learnt)
        self.latents = LatentShift(original, views, *pushed) if views else None
        self.fade = fade(canvas.part, self.grid.shape, original)
        self.hinge, self.course = HINGE_WEIGHTS[1], Course()
        for face in canvas.faces:
            face.floors = [self.zero_shot.threshold - self.zero_shot.margin] * len(networks.encoders)

    def _around(self, original: Images) -> Images:
        """Return the photo with the perturbation so far outside of this canvas."""
        changed = (original + self.start).clamp(0, 1)
        changed[self.inside] = original[self.inside]
        return changed

    def first(self, generator: Generator) -> Tensor:
        """Return the first perturbation of the grid: the one so far, and noise."""
        noise = torch.rand(self.before.shape, generator=generator).to(self.before) * 2 - 1
        return self.moved(self.before, FIRST_NOISE * noise)

    def moved(self, delta: Tensor, change: Tensor) -> Tensor:
        """Return the perturbation after a step, within its outer bound."""
        if self.codec.grey:
            change = change.mean(1, keepdim=True).expand_as(change)
        return (delta + self.fade * blur(change, self.config.smoothing)).clamp(-self.config.eta, self.config.eta)

    def pasted(self, delta: Tensor) -> Tensor:
        """Return the perturbation of the photo `1 3 h w`: the one so far, and what the grid adds to it."""
        out = self.start.clone()
        out[self.inside] += self.grid.paste(delta - self.before)
        return out.clamp_(-self.config.eta, self.config.eta)

    def fitted(self, delta: Tensor) -> Tensor:
        """Return the pasted perturbation, reduced where the stored file scores below the target, else enlarged.

        Scaled is what this canvas adds; other canvases stay as they are. Only the last canvas is enlarged.
        """
        (largest, halvings), added = FITTING, delta - self.before

        def at(scale: float) -> Tensor:
            return self.pasted(self.before + scale * added)

        def allowed(scale: float) -> bool:
            return self.canvas.score(at(scale)) >= self.canvas.target + SCORE_MARGIN

        low, high = (1.0, largest) if allowed(1.0) else (0.0, 1.0)
        if low and not self.canvas.last:
            return at(low)
        for _ in range(halvings):
            middle = (low + high) / 2
            low, high = (middle, high) if allowed(middle) else (low, middle)
        return at(low)

    def gradient(self, delta: Tensor, step: int) -> Tensor:
        """Return the gradient of all losses at the grid."""
        point = delta.detach().requires_grad_(True)
        loss = point.new_zeros(())
        for face, view in zip(self.canvas.faces, self.views, strict=True):
            loss = loss + self.hinge * self._identity(face, view, point, step)
        if self.latents:
            push = self.latents.loss(point, step)
            self.course.shifts.append(math.exp(-float(push.detach())))
            loss = loss + self.config.latent_weight * push
        gradient = self.budget.gradient(self.clean + delta, step)
        self.course.scores.append(self.budget.score)
        if loss.requires_grad:
            gradient = gradient + torch.autograd.grad(loss, point)[0]
        self._adapt()
        return gradient

    def correct(self, found: float) -> None:
        """Raise the target of the loop where the stored file scores too low; its pixels are rounded, and finer."""
        self.budget.target += max(-1.0, min(1.0, (self.canvas.target + 0.5 - found) / 2))

    def _identity(self, face: FaceTask, view: FaceView, point: Tensor, step: int) -> Tensor:
        """Return the encoders' cosines above their floors, at the detector's alignments and at some with noise.

        Noise alone lowers a cosine: at noisy alignments only, those of the detector would stay the highest.
        """
        config, encoders, draws = self.zero_shot, self.networks.encoders, self.config.draws
        turn, chosen = np.divmod(step * draws + np.arange(draws), len(face.bases))
        matrices = face.bases[chosen].copy()
        noise = (JITTER_SHARE * config.linear_noise, JITTER_SHARE * config.shift_noise)
        if (noisy := turn % 2 == 1).any():
            matrices[noisy] = jitter(matrices[noisy], *noise, face.generator)
        augmentation = draw_augmentation(config.eot, face.generator, self.codec)
        known = list(face.history[-1]) if face.history else [1.0] * len(encoders)
        picked = self._picked(face)
        crops = {c: augmentation(view, point, matrices, c) for c in dict.fromkeys(encoders[i].cut for i in picked)}
        weights, terms = config.encoder_weights or (1.0,) * len(encoders), []
        for i in picked:
            cosines = (encoders[i](crops[encoders[i].cut]) * face.targets[i][chosen]).sum(1)
            known[i] = float(cosines.detach().max())
            terms.append(weights[i] * (cosines - face.floors[i]).clamp_min(0).mean())
        face.history.append(known)
        return torch.stack(terms).mean() * len(encoders)

    def _picked(self, face: FaceTask) -> list[int]:
        """Return the encoders of this step, drawn at random; at the first step all."""
        count, asked = len(self.networks.encoders), self.config.encoders_per_step
        if not asked or asked >= count or not face.history:
            return list(range(count))
        return torch.randperm(count, generator=face.generator)[:asked].tolist()

    def _adapt(self) -> None:
        """Change the identity weight: up while an encoder is above its floor, down while none is."""
        if not self.canvas.faces:
            return
        above = max(c - low for f in self.canvas.faces for c, low in zip(f.history[-1], f.floors, strict=True))
        factor = RATE ** max(-1.0, min(1.0, (above - COSINE_SPREAD / 2) / COSINE_SPREAD))
        self.hinge = min(max(self.hinge * factor**0.5, HINGE_WEIGHTS[0]), HINGE_WEIGHTS[2])


def _adam(gradient: Tensor, moments: tuple[Tensor, Tensor], step: int) -> Tensor:
    """Return Adam's direction (Kingma and Ba 2015), and update its moments in place."""
    mean, square = moments
    mean.lerp_(gradient, 1 - BETAS[0])
    square.lerp_(gradient.square(), 1 - BETAS[1])
    spread = (square / (1 - BETAS[1] ** (step + 1))).sqrt()
    return -(mean / (1 - BETAS[0] ** (step + 1))) / (spread + SPREAD * spread.mean() + 1e-20)


def _resized(image: Tensor, shape: tuple[int, int]) -> Tensor:
    return image if image.shape[-2:] == shape else functional.interpolate(image, shape, mode="bilinear", antialias=True)
