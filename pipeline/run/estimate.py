"""Time and cost of the photos of a plan."""

from dataclasses import dataclass

from pipeline.config import RunConfig
from pipeline.run.plan import Plan

SECONDS_PER_PHOTO = {"tiny": 45.0, "sd21": 300.0}
"""Assumed rate of one actor with two encoders, used until this output has measurements; an estimate only."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated time and cost of the new photos; `measured_photos` is 0 for an assumed rate."""

    seconds_per_photo: float
    measured_photos: int
    actor_hours: float
    gpu_hours: float
    cost: float | None


def estimate(config: RunConfig, plan: Plan, price: float | None) -> Estimate:
    """Return time and cost of the new photos, at the rate measured in this output on the same kind of device.

    Without measurements a default rate is used. `price` is per GPU-hour, or per actor-hour without GPUs.
    """
    gpu = config.gpus_per_actor > 0
    rows = [r for r in plan.index.done.values() if r.seconds > 0 and (r.device not in ("", "cpu")) == gpu]
    measured = sum(row.photos - row.failed_photos for row in rows)
    default = SECONDS_PER_PHOTO.get(config.profile, SECONDS_PER_PHOTO["sd21"])
    rate = sum(row.seconds for row in rows) / measured if measured else default
    hours = plan.todo_photos * rate / 3600
    billed = hours * config.gpus_per_actor if gpu else hours
    return Estimate(
        seconds_per_photo=round(rate, 3),
        measured_photos=measured,
        actor_hours=round(hours, 4),
        gpu_hours=round(hours * config.gpus_per_actor, 4),
        cost=None if price is None else round(billed * price, 2),
    )
