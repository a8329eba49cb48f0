"""Best-of-N ISM: the attacker keeps the best picture of a prompt, so one good picture is enough (the worst case)."""

from dladiff.evaluation.metrics.record import Metric

METRIC = Metric(
    name="ism_best",
    heading="ISM best",
    about="largest cosine to the clean references among the pictures of a prompt, 0 for one without a face",
    place=22,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("scores", "change", "less"),
    counted=True,
    entry="ism",
    value=lambda kept, encoder: kept.get(encoder) or 0.0,
    reduce=max,
)
