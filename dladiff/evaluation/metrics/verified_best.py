"""Best-of-N verification: whether any of the N pictures that an attacker generates of a prompt is verified."""

from dladiff.evaluation.metrics.record import Metric, never_without_face

METRIC = Metric(
    name="verified_best",
    heading="verified best",
    about="share of the trainings of which at least one picture of a prompt reaches the encoder's threshold; empty "
    "without a threshold",
    order=24,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("scores", "change", "difference", "worst"),
    show_n=True,
    rescored=True,
    entry="ism",
    value=never_without_face,
    verifies=True,
    reduce=max,
)
