"""ISM_gen over all pictures, as the DLADiff paper defines it."""

from dladiff.evaluation.metrics.record import Metric, zero_without_face

METRIC = Metric(
    name="gen_all",
    heading="ISM_gen",
    about="cosine of the largest face to the originals of the attacker's photos, 0 without a face",
    order=30,
    of="generated",
    better="lower",
    per_encoder=True,
    tables=("zero-shot pictures",),
    show_n=True,
    entry="gen",
    measure=lambda picture: picture.to_originals,
    value=zero_without_face,
)
