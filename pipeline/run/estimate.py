"""Time, work and cost of the photos of a plan."""

from dataclasses import dataclass

from dladiff.settings.schema import MethodConfig, method_config
from pipeline.config import RunConfig
from pipeline.run.plan import Plan

SECONDS_PER_PHOTO = {"tiny": 45.0, "sd21": 300.0}
"""Assumed rate of one actor with two encoders, used until this output has measurements and for settings that WORK does
not count; an estimate only."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of one square photo of 512 px with one face (`python -m tests.bench.cost`)."""

    tflop: float
    """Floating-point operations, counted, 10^12. Of full-size models those of layer 1."""
    cpu_seconds: float | None = None
    """Processor time on one core of docs/benchmarks.md; None: not measured."""


WORK = {
    "tiny": {"default": Work(tflop=0.56, cpu_seconds=20), "paper": Work(tflop=2.36, cpu_seconds=84)},
    "sd21": {"default": Work(tflop=680), "paper": Work(tflop=2516)},
}
"""Work of the default and of `preset: paper`, by profile."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated time and cost of the new photos; `measured_photos` is 0 for an assumed rate."""

    seconds_per_photo: float
    measured_photos: int
    actor_hours: float
    gpu_hours: float
    cost: float | None


def work_of(config: MethodConfig) -> Work | None:
    """Return the work of a photo with these settings; None: they were not counted.

    A strength changes nothing and steps count in proportion; other VAEs, schedules or, of `tiny`, encoders do.
    """
    known = WORK.get(config.profile)
    usual = method_config(config.profile, None, {})
    if known is None or config.protection != "dladiff" or config.layers != "both":
        return None
    if usual.encoders and config.encoders != usual.encoders:
        return None
    if config.pushes_latents and not config.trains_surrogate and not config.joint.vaes:
        share = config.joint.steps / usual.joint.steps
        work = known["default"]
        seconds = None if work.cpu_seconds is None else round(work.cpu_seconds * share, 1)
        return Work(tflop=round(work.tflop * share, 2), cpu_seconds=seconds)
    paper = method_config(config.profile, "paper", {})
    alike = (config.visibility, config.finetuning, config.zero_shot) == (0, paper.finetuning, paper.zero_shot)
    return known["paper"] if alike else None


def paper_work(profile: str) -> Work | None:
    """Return the work of a photo with `preset: paper`; None: it was not counted for this profile."""
    return WORK[profile]["paper"] if profile in WORK else None


def estimate(config: RunConfig, plan: Plan, price: float | None) -> Estimate:
    """Return time and cost of the new photos, at the rate measured in this output on the same kind of device.

    Without measurements it is the time that was counted for these settings, or a default rate. `price` is per GPU-hour,
    or per actor-hour without GPUs.
    """
    gpu = config.gpus_per_actor > 0
    rows = [r for r in plan.index.done.values() if r.seconds > 0 and (r.device not in ("", "cpu")) == gpu]
    measured = sum(row.photos - row.failed_photos for row in rows)
    rate = sum(row.seconds for row in rows) / measured if measured else assumed_seconds(config)
    hours = plan.todo_photos * rate / 3600
    billed = hours * config.gpus_per_actor if gpu else hours
    return Estimate(
        seconds_per_photo=round(rate, 3),
        measured_photos=measured,
        actor_hours=round(hours, 4),
        gpu_hours=round(hours * config.gpus_per_actor, 4),
        cost=None if price is None else round(billed * price, 2),
    )


def assumed_seconds(config: RunConfig) -> float:
    """Return the seconds of a photo before any was measured."""
    work = work_of(config.method_config())
    if work is not None and work.cpu_seconds is not None and config.gpus_per_actor == 0:
        return work.cpu_seconds
    return SECONDS_PER_PHOTO.get(config.profile, SECONDS_PER_PHOTO["sd21"])
