"""NSFWR: how often the base model's safety checker raises a flag."""

from dladiff.evaluation.metrics.record import Metric, plain

METRIC = Metric(
    name="nsfwr",
    heading="NSFWR",
    about="share flagged by the safety checker; null without one",
    place=51,
    of="generated",
    better="higher",
    needs="the base model has no safety checker",
    tables=("other base",),
    counted=True,
    entry="nsfw",
    measure=lambda picture: picture.networks.safety and picture.networks.safety([picture.picture])[0],
    value=plain,
)
