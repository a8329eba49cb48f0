"""SSIM (Wang et al. 2004) of the stored photo."""

from dladiff.core import quality
from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="ssim",
    heading="SSIM",
    about="mean over photos, without unit",
    order=62,
    of="stored",
    better="higher",
    tables=("stored",),
    digits=4,
    entry="ssim",
    measure=lambda photo: quality.ssim(photo.original, photo.protected),
    value=plain,
)
