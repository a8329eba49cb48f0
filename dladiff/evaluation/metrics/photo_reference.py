"""Similarity of the protected photos to the person's other clean photos, the comparison of verification."""

from dladiff.evaluation.metrics.record import Metric, zero_without_face

METRIC = Metric(
    name="photo_reference",
    heading="photo to references",
    about="cosine of the photo, after preprocessing, to the person's other clean photos, 0 without a face; empty "
    "without other photos",
    order=42,
    of="preprocessed",
    better="lower",
    per_encoder=True,
    entry="reference",
    value=lambda stored, encoder: zero_without_face(stored or {}, encoder),
)
