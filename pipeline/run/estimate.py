"""Time, work and cost of the photos of a plan."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dladiff.settings.schema import MethodConfig, method_config
from pipeline.config import RunConfig
from pipeline.run.plan import Plan

SECONDS_PER_PHOTO = {"tiny": 45.0}
OTHER_SECONDS_PER_PHOTO = 300.0
"""Guesses for settings that WORK does not count, by profile: compared methods, other encoders, models, schedules."""
GPU_TFLOPS, GPU_LEAST_S = 60.0, 3.0
"""Assumed of a GPU: 10^12 operations a second, and least seconds a photo (detection, encoding and files). An A100 has
312 in bf16 by its data sheet, of which a fifth is 60; an L4 121, an H100 989. No full-size model was measured yet."""
CPU_SPREAD, GPU_SPREAD, GUESS_SPREAD = 2.0, 5.0, 3.0
"""Factors by which the true seconds may differ either way: another CPU; another card or share of its peak; a guess."""
FEW = 5  # records below which their spread says too little
LEAST_SPREAD = 1.2  # of a measured rate: the next photos may have other sizes


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
    **{name: {"default": Work(tflop=680)} for name in ("sd15", "sd35", "flux1", "flux1-schnell", "flux2-klein")},
    "sdxl": {"default": Work(tflop=3092)},
}
"""Work of the default and of `preset: paper`, by profile: one encoder architecture, at 512 px and, of SDXL, 1,024."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated time and cost of the new photos; `measured_photos` is 0 for an assumed rate."""

    seconds_per_photo: float
    low: float
    """Seconds of a photo if all goes well; `high` if not. Of a measured rate a 95 % interval, else a stated spread."""
    high: float
    rate: str
    """Where the seconds come from: measured, counted or assumed."""
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
    return known.get("paper") if alike else None


def paper_work(profile: str) -> Work | None:
    """Return the work of a photo with `preset: paper`; None: it was not counted for this profile."""
    return WORK.get(profile, {}).get("paper")


def estimate(config: RunConfig, plan: Plan, price: float | None) -> Estimate:
    """Return time and cost of the new photos, at the rate measured in this output on the same kind of device.

    Without measurements it follows from the work that was counted for these settings, or is a guess. `price` is per
    GPU-hour, or per actor-hour without GPUs.
    """
    gpu = config.gpus_per_actor > 0
    rows = [r for r in plan.index.done.values() if r.seconds > 0 and (r.device not in ("", "cpu")) == gpu]
    pairs = [(row.seconds, row.photos - row.failed_photos) for row in rows]
    measured = sum(photos for _, photos in pairs)
    rate = measured_rate(pairs) if measured else assumed_rate(config)
    hours = plan.todo_photos * rate.seconds / 3600
    billed = hours * config.gpus_per_actor if gpu else hours
    return Estimate(
        seconds_per_photo=round(rate.seconds, 3),
        low=round(rate.low, 3),
        high=round(rate.high, 3),
        rate=rate.source,
        measured_photos=measured,
        actor_hours=round(hours, 4),
        gpu_hours=round(hours * config.gpus_per_actor, 4),
        cost=None if price is None else round(billed * price, 2),
    )


@dataclass(frozen=True)
class Rate:
    """Seconds of a photo, the least and most that they may be, and where they come from."""

    seconds: float
    low: float
    high: float
    source: str


def measured_rate(pairs: Sequence[tuple[float, int]]) -> Rate:
    """Return the rate of seconds and photos by record; its interval is that of a ratio of sums (normal, 95 %)."""
    photos = sum(count for _, count in pairs)
    rate = sum(seconds for seconds, _ in pairs) / photos
    half = 0.0
    if len(pairs) >= FEW:
        squares = sum((seconds - rate * count) ** 2 for seconds, count in pairs)
        half = 1.96 * math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / photos
    least = LEAST_SPREAD if len(pairs) >= FEW else CPU_SPREAD
    return Rate(rate, max(min(rate - half, rate / least), 0.0), max(rate + half, rate * least), "measured")


def assumed_rate(config: RunConfig) -> Rate:
    """Return the seconds of a photo before any was measured."""
    work = work_of(config.method_config())
    on_cpu = config.gpus_per_actor == 0
    if work is None or (on_cpu and work.cpu_seconds is None):
        guess = SECONDS_PER_PHOTO.get(config.profile, OTHER_SECONDS_PER_PHOTO)
        return Rate(guess, guess / GUESS_SPREAD, guess * GUESS_SPREAD, "assumed")
    if on_cpu and work.cpu_seconds is not None:
        return Rate(work.cpu_seconds, work.cpu_seconds / CPU_SPREAD, work.cpu_seconds * CPU_SPREAD, "counted")
    seconds = work.tflop / GPU_TFLOPS
    low, high = (max(value, GPU_LEAST_S) for value in (seconds / GPU_SPREAD, seconds * GPU_SPREAD))
    return Rate(max(seconds, GPU_LEAST_S), low, max(high, GPU_LEAST_S * GPU_SPREAD), "counted")
