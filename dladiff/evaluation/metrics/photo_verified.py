"""Verification rate of the protected photos themselves at the threshold of a false accept rate (ISO/IEC 19795-1)."""

from dladiff.evaluation.metrics.record import Metric, never_without_face

METRIC = Metric(
    name="photo_verified",
    heading="photo verified",
    about="share of the photos, after preprocessing, whose cosine to the person's other clean photos reaches the "
    "encoder's threshold; a photo without a face is not verified; empty without a threshold or without other photos",
    order=43,
    of="preprocessed",
    better="lower",
    per_encoder=True,
    tables=("zero-shot photos", "worst photos"),
    show_n=True,
    entry="reference",
    measure=lambda photo: photo.to_references,
    value=never_without_face,
    verifies=True,
)
