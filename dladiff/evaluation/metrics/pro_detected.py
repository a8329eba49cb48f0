"""ISM_pro over the photos with a face."""

from dladiff.evaluation.metrics.record import Metric, detected

METRIC = Metric(
    name="pro_detected",
    heading="ISM_pro detected",
    about="cosine of the photo, after preprocessing, to its original, photos with a face only",
    order=41,
    of="preprocessed",
    better="lower",
    per_encoder=True,
    entry="pro",
    value=detected,
)
