"""ISM over all pictures, as the DLADiff paper defines it."""

from dladiff.evaluation.metrics.record import Metric

METRIC = Metric(
    name="ism_all",
    heading="ISM all",
    about="cosine of the largest face to the clean references, 0 without a face",
    order=20,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("scores", "change", "difference", "worst"),
    rescored=True,
    entry="ism",
    measure=lambda picture: picture.to_references,
    value=lambda stored, encoder: stored.get(encoder) or 0.0,
)
