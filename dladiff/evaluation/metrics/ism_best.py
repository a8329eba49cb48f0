"""Best-of-N ISM, the worst case: the attacker generates N pictures of a prompt and keeps the best."""

from dladiff.evaluation.metrics.record import Metric

METRIC = Metric(
    name="ism_best",
    heading="ISM best",
    about="largest cosine to the clean references among the pictures of a prompt, 0 for one without a face",
    order=22,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("scores", "change", "difference", "worst"),
    show_n=True,
    rescored=True,
    entry="ism",
    value=lambda stored, encoder: stored.get(encoder) or 0.0,
    reduce=max,
)
