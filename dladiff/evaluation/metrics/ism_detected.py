"""ISM over the pictures with a face, as Anti-DreamBooth (Van Le et al. 2023) defines it."""

from dladiff.evaluation.metrics.record import Metric, detected

METRIC = Metric(
    name="ism_detected",
    heading="ISM detected",
    about="cosine of the largest face to the clean references, pictures with a face only",
    order=21,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("scores", "difference"),
    show_n=True,
    rescored=True,
    entry="ism",
    value=detected,
)
