"""ISM_pro over all photos, as the paper counts it."""

from dladiff.evaluation.metrics.record import Metric, zero_without_a_face

METRIC = Metric(
    name="pro_all",
    heading="ISM_pro",
    about="cosine of the photo, after preprocessing, to its original, 0 without a face",
    place=40,
    of="shown",
    better="lower",
    per_encoder=True,
    tables=("zero-shot photos",),
    counted=True,
    entry="pro",
    measure=lambda photo: photo.to_original,
    value=zero_without_a_face,
)
