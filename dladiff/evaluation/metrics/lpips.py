"""LPIPS (Zhang et al. 2018) of the stored photo, by the user's network (--lpips)."""

from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="lpips",
    heading="LPIPS",
    about="mean over photos, without unit; null without the network of --lpips",
    order=63,
    of="stored",
    better="lower",
    needs="no --lpips",
    tables=("stored",),
    digits=4,
    entry="lpips",
    measure=lambda photo: photo.networks.lpips and photo.networks.lpips.measure(photo.original, photo.protected),
    value=plain,
)
