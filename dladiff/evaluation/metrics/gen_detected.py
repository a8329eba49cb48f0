"""ISM_gen over the pictures with a face."""

from dladiff.evaluation.metrics.record import Metric, detected

METRIC = Metric(
    name="gen_detected",
    heading="ISM_gen detected",
    about="cosine of the largest face to the originals of the attacker's photos, pictures with a face only",
    order=31,
    of="generated",
    better="lower",
    per_encoder=True,
    entry="gen",
    value=detected,
)
