"""FIQA: face image quality by a network of the user (--fiqa)."""

from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="fiqa",
    heading="FIQA",
    about="mean face quality; null without its network",
    place=50,
    of="generated",
    better="lower",
    needs="no --fiqa",
    tables=("attack",),
    counted=True,
    entry="fiqa",
    measure=lambda picture: picture.networks.fiqa and float(picture.networks.fiqa(picture.picture)[0]),
    value=plain,
)
