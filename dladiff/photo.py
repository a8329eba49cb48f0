"""One photo: its views and layer 1 at its own size, and the check and measurement of its protected pixels."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dladiff.core import quality, tiles, visibility
from dladiff.core.arrays import Pixels
from dladiff.core.codec import Codec, fitting_quality, is_grey
from dladiff.core.exchange import PhotoIn, PhotoOut
from dladiff.core.field import Encoded, Field, Perturbation, Squares
from dladiff.core.pixels import Images, content_digest, to_float, to_uint8, whole_levels
from dladiff.core.ssimulacra2 import Ssimulacra2
from dladiff.core.views import View, attacker_views
from dladiff.core.visibility import Rectangle, around_face, cut, shown
from dladiff.faces.detect import Detector, Face
from dladiff.faces.given import with_given
from dladiff.layers.displacement import Displaced
from dladiff.layers.joint import SCORE_MARGIN
from dladiff.layers.parts import Part, parts_of
from dladiff.layers.zero_shot import Box
from dladiff.settings.schema import MethodConfig

HALVINGS = 6
"""Halvings of the interval in which the scale of a perturbation is searched."""


@dataclass
class Work:
    """State of one photo of an identity. At the photo's own size it holds only the bytes, to save memory."""

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
    moved: Displaced | None = None
    """The photo with its displaced face, to which the perturbation is added; None where nothing is displaced."""
    delta: Tensor | None = None
    """Both layers under the visibility budget, `1 3 h w`; None without it."""
    steps: int = 0
    """Steps of layer 2, or of both layers under the budget, summed over the faces."""
    cosines: list[list[float]] = field(default_factory=list)
    """Cosine of each optimised encoder at each of these steps."""
    scores: list[float] = field(default_factory=list)
    """SSIMULACRA2 in the loop at each step under the visibility budget."""
    shifts: list[float] = field(default_factory=list)
    """Relative squared latent shift at each of its steps with a latent push."""

    @classmethod
    def of(cls, photo: PhotoIn, detector: Detector, device: torch.device, config: MethodConfig) -> "Work":
        """Detect the faces of a photo and choose the views of layer 1."""
        x = to_float(photo.pixels).to(device)
        faces = with_given(detector.detect(photo.pixels), photo)
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
        return cls(photo, content_digest(photo.pixels).hex(), faces, views, whole, crops, _codec(photo, config))

    def start(self, config: MethodConfig) -> Perturbation:
        """Set layer 1 to zero; return it as the stored file will show it."""
        bounds = (config.finetuning.eta, config.finetuning.min_psnr)
        if self.whole:
            self.perturbation = Field(self.original(), self.views, config.resolution, *bounds, grey=self.codec.grey)
        else:
            self.perturbation = Squares(self.crops, *bounds, grey=self.codec.grey)
        return Encoded(self.perturbation, partial(self.seen, config)) if self.codec.lossy else self.perturbation

    def original(self) -> Images:
        """Return the photo, `1 3 h w`."""
        return to_float(self.photo.pixels).to(self.crops.device)

    @property
    def base(self) -> Pixels:
        """The photo to which the perturbation is added: the original, or the one with its displaced face."""
        return self.moved.pixels if self.moved else self.photo.pixels

    def unperturbed(self) -> Images:
        """Return this photo, `1 3 h w`."""
        return to_float(self.base).to(self.crops.device)

    def learnt(self) -> Images:
        """Return the views of a clean photo that fine-tuning learns from, `1 3 r r` or `2 3 r r`.

        These are the square of the largest face, or, in `region: photo`, the middle square and the largest face's view.
        """
        both = [view.name for view in self.views[:2]] == ["middle", "face 1"]
        return self.crops[: 2 if both else 1]

    def parts(self, config: MethodConfig) -> list[Part]:
        """Return the parts of the photo that are optimised one after the other, under the visibility budget."""
        return parts_of(self.photo.pixels.shape[:2], self.faces, self.views, config)

    def perturbed(self, delta: Tensor) -> Pixels:
        """Return the pixels of the photo with a perturbation `1 3 h w`."""
        return to_uint8(self.unperturbed() + delta)

    def layer1(self, config: MethodConfig) -> Tensor:
        """Return layer 1 at the photo's size, `1 3 h w`, within its bound: the field, or the enlarged squares.

        Where the squares of a compared method overlap, their mean.
        """
        x, eta = self.original(), whole_levels(config.finetuning.eta)
        if isinstance(self.perturbation, Field):
            return self.perturbation.at_full_size().clamp(-eta, eta)
        total, count = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for delta, view in zip(self.perturbation.delta if self.perturbation else (), self.views, strict=False):
            square = tiles.Square(view.x, view.y, view.width)
            tiles.add_square(total, tiles.spread(delta[None], square, eta), square)
            tiles.add_square(count, torch.ones_like(count[..., :1, :1]).expand(1, 1, square.side, square.side), square)
        return (total / count.clamp_min(1)).clamp_(-eta, eta)

    def seen(self, config: MethodConfig) -> Tensor:
        """Return the change of each view by layer 1 in the decoded file, `n 3 r r`."""
        stored = self.codec.stored(to_uint8(self.original() + self.layer1(config)))
        image = to_float(stored).to(self.crops.device)
        return torch.cat([view.read(image, config.resolution) for view in self.views]) - self.crops

    def retained(self, config: MethodConfig) -> float:
        """Return the share of layer 1 that an attacker's view of the stored photo contains; the smallest of all views.

        What was optimised in a view is compared with the change of that view's pixels: cut from the decoded file and
        resized, as an attacker does.
        """
        if self.delta is not None and config.layers != "zero_shot":
            x, stored = self.unperturbed(), to_float(self.codec.stored(self.perturbed(self.delta)))
            optimised, found = (
                torch.cat(
                    [view.read(image, config.resolution) - view.read(x, config.resolution) for view in self.views]
                )
                for image in (x + self.delta, stored.to(x.device))
            )
        elif self.perturbation:
            found, optimised = self.seen(config), self.perturbation.views()
        else:
            return 1.0
        return min(tiles.retained(a, b) for a, b in zip(optimised, found, strict=True))


def lowest_score(work: Work, squares: Sequence[Rectangle], delta: Tensor) -> float:
    """Return the lowest SSIMULACRA2 of the stored photo with a perturbation: of the whole, and of each square."""
    before, after = work.base, work.codec.stored(work.perturbed(delta))
    height, width = before.shape[:2]
    found = []
    for square, face in dict.fromkeys([((0, 0, width, height), False), *((square, True) for square in squares)]):
        a, b = (to_float(shown(cut(pixels, square), face)).to(delta.device) for pixels in (before, after))
        found.append(float(Ssimulacra2(a, exact=False)(b)))
    return min(found)


def within_budget(work: Work, delta: Tensor, visibility: float) -> Tensor:
    """Return a perturbation scaled down until the photo and each face score `visibility` or more."""
    height, width = work.photo.pixels.shape[:2]
    squares = [around_face(face.box, height, width) for face in work.faces]

    def allowed(scale: float) -> bool:
        return lowest_score(work, squares, scale * delta) >= visibility + SCORE_MARGIN

    if allowed(1.0):
        return delta
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low * delta


def measured(
    work: Work, encoded: Pixels, stored: Pixels, config: MethodConfig, similarity: list[dict[str, Any]], reason: str
) -> PhotoOut:
    """Return the protected photo with measurements of its stored pixels.

    `encoded`, `stored`: h x w x 3, before encoding and as a reader decodes them. Raises AssertionError if the encoded
    perturbation exceeds its bound, which is a bug.
    """
    photo, faces, original, final = work.photo, work.faces, work.photo.pixels, stored
    mask = _face_mask(faces, original.shape[0], original.shape[1])
    outer = config.finetuning.eta if work.delta is None else config.joint.eta
    bound = outer + config.zero_shot.eta if work.delta is None else outer
    outside, inside = quality.linf(work.base, encoded, ~mask), quality.linf(work.base, encoded, mask)
    if outside > outer + 1e-6 or inside > bound + 1e-6:
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
    boxes = [face.box for face in faces]
    seen, seen_in_faces = visibility.ssimulacra2_of_both(original, final, boxes)
    if work.moved:
        reason = "; ".join(filter(None, (work.moved.note(final, boxes), reason)))
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
        ssimulacra2=seen,
        ssimulacra2_face=seen_in_faces,
        similarity=similarity,
        retained=work.retained(config),
        codec=work.codec,
        geometry=work.moved.row() if work.moved else None,
    )


def _face_mask(faces: list[Face], height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=bool)
    for face in faces:
        box = Box.of(face, height, width)
        mask[box.y0 : box.y1, box.x0 : box.x1] = True
    return mask


def _codec(photo: PhotoIn, config: MethodConfig) -> Codec:
    """Return how the photo is stored."""
    grey, quality = is_grey(photo.pixels), config.output.quality
    if config.output.format == "png" or photo.transparent:
        return Codec("png", grey=grey)
    if photo.file_bytes:
        quality = fitting_quality(photo.pixels, quality, photo.file_bytes, config.finetuning.eta, grey)
    return Codec("jpeg", quality, grey)
