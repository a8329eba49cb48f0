"""PSNR of the stored photo inside the face boxes."""

from dladiff.core import quality
from dladiff.evaluation.metrics.record import Metric, Stored, finite, plain


def psnr_face(photo: Stored) -> float | None:
    """Return the PSNR inside the face boxes, dB; None without a face or without a change."""
    return finite(quality.psnr(photo.original, photo.protected, photo.faces)) if photo.faces.any() else None


METRIC = Metric(
    name="psnr_face",
    heading="PSNR face dB",
    about="mean over photos inside the face boxes, dB; null without a face or a change",
    order=61,
    of="stored",
    better="higher",
    tables=("stored",),
    digits=2,
    entry="psnr_face",
    measure=psnr_face,
    value=plain,
)
