"""FIQA: face image quality by the user's network (--fiqa)."""

from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="fiqa",
    heading="FIQA",
    about="mean face quality by the network of --fiqa; null without it",
    order=50,
    of="generated",
    better="lower",
    needs="no --fiqa",
    tables=("attack",),
    show_n=True,
    entry="fiqa",
    measure=lambda picture: picture.networks.fiqa and float(picture.networks.fiqa(picture.picture)[0]),
    value=plain,
)
