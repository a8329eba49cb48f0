"""NSFWR: share of the pictures that the base model's safety checker flags."""

from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="nsfwr",
    heading="NSFWR",
    about="share of the pictures that the base model's safety checker flags; null without one",
    order=51,
    of="generated",
    better="higher",
    needs="the base model has no safety checker",
    tables=("other base",),
    show_n=True,
    entry="nsfw",
    measure=lambda picture: picture.networks.safety and picture.networks.safety([picture.picture])[0],
    value=plain,
)
