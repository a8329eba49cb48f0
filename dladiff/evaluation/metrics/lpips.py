"""LPIPS of the stored photo, by a network of the user (--lpips)."""

from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="lpips",
    heading="LPIPS",
    about="1; null without its network",
    place=63,
    of="stored",
    better="lower",
    needs="no --lpips",
    tables=("stored",),
    digits=4,
    entry="lpips",
    measure=lambda photo: photo.networks.lpips and photo.networks.lpips.measure(photo.original, photo.protected),
    value=plain,
)
