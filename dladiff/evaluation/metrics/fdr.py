"""FDR: the face detection rate."""

from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="fdr",
    heading="FDR",
    about="share of the pictures with a face",
    order=10,
    of="generated",
    better="lower",
    tables=("scores", "change", "difference"),
    rescored=True,
    entry="face",
    measure=lambda picture: picture.face,
    value=plain,
)
