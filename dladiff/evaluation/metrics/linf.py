"""The largest change of a stored photo."""

from dladiff.core import quality
from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="linf",
    heading="largest change, of 255",
    about="mean of the photos' largest changes, [0, 1] units",
    place=64,
    of="stored",
    better="lower",
    tables=("stored",),
    entry="linf",
    measure=lambda photo: quality.linf(photo.original, photo.protected),
    value=plain,
    cell=lambda values: f"{max(values) * 255:.0f}" if values else "-",
)
