"""SSIMULACRA2 in torch: how visible a change of a picture is, differentiable in the changed picture.

Sneyers 2022 (github.com/cloudinary/ssimulacra2); the borders are those of the Python package `ssimulacra2` 0.3. 100 is
identical, 90 not distinguishable side by side, 70 high quality, 50 medium, 30 low; it has no lower limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dladiff.core.pixels import Images
from dladiff.core.visibility import SMALLEST

Region = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels."""
SCALES = 6
"""Sizes at which the pictures are compared, each half of the one before."""
SIGMA, RADIUS = 1.5, 5
"""Gaussian window of the local moments, pixels."""
C2 = 0.0009
"""Constant of SSIM's contrast term."""
NEGLIGIBLE = 0.01
"""Terms with a smaller weight are left out of the fast form: together they take less than a tenth of a point."""
BIAS = 0.0037930732552754493
ABSORBANCE = (
    (0.30, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095536),
)
"""Linear RGB to the eye's receptors, as in JPEG XL's XYB."""

# Weights by channel (X red-green, Y lightness, B blue), scale, norm (mean, L4), term (SSIM, artefact, lost detail).
WEIGHTS = """
0 .0007376606707406586 0 0 .0007793481682867309 0
0 .0004371155730107379 0 1.1041726426657346 .00066284834129271 .00015231632783718752
0 .0016406437456599754 0 1.8422455520539298 11.441172603757666 0
.0007989109436015163 .000176816438078653 0 1.8787594979546387 10.94906990605142 0
.0007289346991508072 .9677937080626833 0 .00014003424285435884 .9981766977854967 .00031949755934435053
.0004550992113792063 0 0 .0013648766163243398 0 0
0 0 0 7.466890328078848 0 17.445833984131262
.0006235601634041466 0 0 6.683678146179332 .00037724407979611296 1.027889937768264
225.20515300849274 0 0 19.213238186143016 .0011401524586618361 .001237755635509985
176.39317598450694 0 0 24.43300999870476 .28520802612117757 .0004485436923833408
0 0 0 34.77906344483772 44.835625328877896 0
0 0 0 0 0 0
0 .0008680556573291698 0 0 0 0
0 .0005313191874358747 0 .00016533814161379112 0 0
0 0 0 .0004179171803251336 .0017290828234722833 0
.0020827005846636437 0 0 8.826982764996862 23.19243343998926 0
95.1080498811086 .9863978034400682 .9834382792465353 .0012286405048278493 171.2667255897307 .9807858872435379
0 0 0 .0005130064588990679 0 .00010854057858411537
"""


@dataclass(frozen=True)
class _Scale:
    """The unchanged picture at one size: some of its channels `c 1 h w`, and what is compared of each."""

    index: int
    channels: list[int]
    down: Tensor
    """Local means along columns, as a matrix `h h`; `across` along rows, `w w`, to be multiplied from the right."""
    across: Tensor
    weights: Tensor
    """`c 2 3`: norm, term."""
    image: Tensor
    mean: Tensor
    variance: Tensor

    def blur(self, images: Tensor) -> Tensor:
        """Return the local means of pictures of this size."""
        return self.down @ images @ self.across


class Ssimulacra2:
    """Compares changed pictures with one unchanged picture."""

    def __init__(self, original: Images, exact: bool = True, regions: Sequence[Region] = ()) -> None:
        """`original`: `1 3 h w`, sRGB in [0, 1]. `exact`: compute also terms whose weight is next to nothing.

        `regions`: parts of the picture to score; by default the whole picture alone. Their borders see their
        surroundings, so that their scores differ slightly from those of the parts cut out.
        """
        linear = _linear(original)
        self.regions = list(regions) or [(0, 0, original.shape[-1], original.shape[-2])]
        pictures = _pyramid(linear)
        flat = torch.tensor([float(v) for v in WEIGHTS.split()], dtype=original.dtype, device=original.device)
        self.shape, self.scales = original.shape, []
        # With fewer scales the weights are taken in order of what is there, as in the original implementation.
        weights = flat[: 3 * len(pictures) * 6].view(3, len(pictures), 2, 3)
        for scale, picture in enumerate(pictures):
            own = weights[:, scale]
            channels = [c for c in range(3) if exact or float(own[c].max()) > NEGLIGIBLE]
            if not channels:
                continue
            image = _opponent(picture, channels)
            down, across = _window(image.shape[-2], True, image), _window(image.shape[-1], False, image).T
            mean, square = (down @ values @ across for values in (image, image * image))
            self.scales.append(_Scale(scale, channels, down, across, own[channels], image, mean, square - mean * mean))

    def __call__(self, changed: Images) -> Tensor:
        """Return the score of each region of a changed picture `1 3 h w`: `len(regions)`."""
        total = changed.new_zeros(len(self.regions))
        for scale, picture in zip(self.scales, _pyramid(_linear(changed), len(self.scales)), strict=True):
            total = total + _distances(scale, _opponent(picture, scale.channels), self.regions)
        total = total * 0.9562382616834844
        total = 2.326765642916932 * total - 0.020884521182843837 * total**2 + 6.248496625763138e-05 * total**3
        return 100 - 10 * total.clamp_min(1e-12) ** 0.6276336467831387


def _distances(scale: _Scale, image: Tensor, regions: Sequence[Region]) -> Tensor:
    """Return the weighted sum of one scale's terms in each region; `image`: its channels of the changed picture."""
    mean, square, product = scale.blur(torch.cat([image, image * image, image * scale.image])).chunk(3)
    variance, covariance = square - mean * mean, product - mean * scale.mean
    similarity = (1 - (scale.mean - mean) ** 2) * (2 * covariance + C2) / (scale.variance + variance + C2)
    edge = (1 + (image - mean).abs()) / (1 + (scale.image - scale.mean).abs()) - 1
    totals = [image.new_zeros(()) for _ in regions]
    for term, values in enumerate((1 - similarity, edge, -edge)):
        weights = scale.weights[:, :, term]
        if float(weights.max()) == 0:
            continue
        values = values.clamp_min(0)
        for i, (x0, y0, x1, y1) in enumerate(regions):
            half = 2**scale.index
            own = values[..., y0 // half : -(-y1 // half), x0 // half : -(-x1 // half)]
            norms = own.mean((1, 2, 3)), (own.square().square().mean((1, 2, 3)) + 1e-30) ** 0.25
            totals[i] = totals[i] + (weights[:, 0] * norms[0] + weights[:, 1] * norms[1]).sum()
    return torch.stack(totals)


def _linear(images: Images) -> Tensor:
    low = images.clamp(0, 1)
    return torch.where(low <= 0.04045, low / 12.92, ((low + 0.055) / 1.055) ** 2.4)


def _pyramid(linear: Tensor, count: int = SCALES) -> list[Tensor]:
    """Return the picture at each size, in linear light."""
    out = [linear]
    while len(out) < count and min(out[-1].shape[-2:]) >= SMALLEST:
        out.append(functional.avg_pool2d(out[-1], 2, ceil_mode=True))
    return out if min(out[-1].shape[-2:]) >= SMALLEST else out[:-1]


def _opponent(linear: Tensor, channels: list[int]) -> Tensor:
    """Return the chosen channels of positive XYB, `c 1 h w`."""
    matrix = torch.tensor(ABSORBANCE, dtype=linear.dtype, device=linear.device)
    mixed = torch.einsum("ij,jhw->ihw", matrix, linear[0]) + BIAS
    long, medium, short = (mixed ** (1 / 3) - BIAS ** (1 / 3)).unbind()
    light = (long + medium) / 2
    every = (7 * (long - medium) + 0.42, light + 0.01, short - light + 0.55)
    return torch.stack([every[c] for c in channels])[:, None]


def _window(length: int, mirrored: bool, like: Tensor) -> Tensor:
    """Return the matrix `length length` of local means along an axis; outside are zeros, or the picture's mirror image.

    Products with it are faster than a convolution up to about 1,000 pixels, and several times faster backwards.
    """
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=like.dtype, device=like.device)
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    at = torch.arange(length, device=like.device)[:, None] + offsets.long()
    inside = (at >= 0) & (at < length)
    kept = torch.where(inside | mirrored, weights / weights.sum(), 0)
    at = torch.where(at < 0, -1 - at, torch.where(at >= length, 2 * length - 1 - at, at)).clamp(0, length - 1)
    return like.new_zeros(length, length).scatter_add_(1, at, kept)
