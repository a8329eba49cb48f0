"""L-infinity distance of the stored photo to its original."""

from dladiff.core import quality
from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="linf",
    heading="largest change, of 255",
    about="mean of the photos' largest changes of a pixel value, [0, 1] units",
    order=64,
    of="stored",
    better="lower",
    tables=("stored",),
    entry="linf",
    measure=lambda photo: quality.linf(photo.original, photo.protected),
    value=plain,
    cell=lambda values: f"{max(values) * 255:.0f}" if values else "-",
)
