"""ISM_gen over all pictures, as the paper counts it."""

from dladiff.evaluation.metrics.record import Metric, zero_without_a_face

METRIC = Metric(
    name="gen_all",
    heading="ISM_gen",
    about="cosine of the largest face to the originals of the attacker's photos, 0 without a face",
    place=30,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("zero-shot pictures",),
    counted=True,
    entry="gen",
    measure=lambda picture: picture.to_originals,
    value=zero_without_a_face,
)
