"""SSIMULACRA2 of the squares around the faces of the stored photo."""

from dladiff.core import visibility
from dladiff.evaluation.metrics.record import Metric, finite, plain

METRIC = Metric(
    name="ssimulacra2_face",
    heading="SSIMULACRA2 face",
    about="mean over photos; of each photo the lowest of its faces, each with a margin: a square of 1.25 times the "
    "longer side of its box; scale as of the whole photo; null without a face",
    order=66,
    of="stored",
    better="higher",
    tables=("stored",),
    digits=1,
    entry="ssimulacra2_face",
    measure=lambda photo: finite(visibility.ssimulacra2_of_faces(photo.original, photo.protected, photo.boxes)),
    value=plain,
)
