"""ISM_pro over all photos, as the DLADiff paper defines it."""

from dladiff.evaluation.metrics.record import Metric, zero_without_face

METRIC = Metric(
    name="pro_all",
    heading="ISM_pro",
    about="cosine of the photo, after preprocessing, to its original, 0 without a face",
    order=40,
    of="preprocessed",
    better="lower",
    per_encoder=True,
    tables=("zero-shot photos", "worst photos"),
    show_n=True,
    entry="pro",
    measure=lambda photo: photo.to_original,
    value=zero_without_face,
)
