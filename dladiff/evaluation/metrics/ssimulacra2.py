"""SSIMULACRA2 (Sneyers 2022) of the stored photo: how little the change is seen."""

from dladiff.core import visibility
from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="ssimulacra2",
    heading="SSIMULACRA2",
    about="mean over photos at the size of a screen (longer side at most 1,080 px); 100 identical, 90 not "
    "distinguishable side by side, 70 high quality, 50 medium, 30 low, no lower limit",
    order=65,
    of="stored",
    better="higher",
    tables=("stored",),
    digits=1,
    entry="ssimulacra2",
    measure=lambda photo: visibility.ssimulacra2(photo.original, photo.protected),
    value=plain,
)
