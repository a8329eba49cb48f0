"""Butteraugli (Alakuijala et al. 2017) of the stored photo, by the program `butteraugli_main` of libjxl."""

from dladiff.core import visibility
from dladiff.errors import ModelError
from dladiff.evaluation.metrics.record import Metric, Stored, plain


def butteraugli(photo: Stored) -> float | None:
    """Return the 3-norm, None without the program. Raises ModelError when the program fails."""
    try:
        return visibility.butteraugli(photo.original, photo.protected)
    except RuntimeError as error:
        raise ModelError(str(error)) from error


METRIC = Metric(
    name="butteraugli",
    heading="Butteraugli 3-norm",
    about="mean over photos at the size of a screen (longer side at most 1,080 px); 0 identical, about 1 just noticed; "
    "null without the program butteraugli_main of libjxl on PATH",
    order=67,
    of="stored",
    better="lower",
    needs="no butteraugli_main on PATH: install libjxl's tools",
    tables=("stored",),
    digits=2,
    entry="butteraugli",
    measure=butteraugli,
    value=plain,
)
