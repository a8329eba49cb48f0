"""ISM over the pictures with a face, as Anti-DreamBooth counts it."""

from dladiff.evaluation.metrics.record import Metric, detected

METRIC = Metric(
    name="ism_detected",
    heading="ISM detected",
    about="cosine of the largest face to the clean references, pictures with a face alone",
    place=21,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("scores", "less"),
    counted=True,
    entry="ism",
    value=detected,
)
