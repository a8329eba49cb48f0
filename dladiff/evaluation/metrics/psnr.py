"""PSNR of the stored photo."""

from dladiff.core import quality
from dladiff.evaluation.metrics.record import Metric, finite, plain

METRIC = Metric(
    name="psnr",
    heading="PSNR dB",
    about="mean over photos, dB; null for an unchanged photo",
    order=60,
    of="stored",
    better="higher",
    tables=("stored",),
    digits=2,
    entry="psnr",
    measure=lambda photo: finite(quality.psnr(photo.original, photo.protected)),
    value=plain,
)
