"""Verification rate of generated pictures at the threshold of a false accept rate (ISO/IEC 19795-1)."""

from dladiff.evaluation.metrics.record import Metric, never_without_face

METRIC = Metric(
    name="verified",
    heading="verified",
    about="share of the pictures whose cosine to the clean references reaches the encoder's threshold (`dladiff "
    "calibrate`, false accept rate 1e-3 by default); a picture without a face is not verified; empty without a "
    "threshold",
    order=23,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("scores", "change", "difference", "worst"),
    rescored=True,
    entry="ism",
    value=never_without_face,
    verifies=True,
)
