"""Time, work and cost of the photos of a plan."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dladiff.settings.schema import MethodConfig, method_config
from pipeline.config import RunConfig
from pipeline.run.plan import Plan

GUESSES, OTHER_GUESS = {"tiny": 45.0}, 300.0
"""Seconds of a photo with settings that WORK does not count, by profile: compared methods, other encoders or steps."""
GPU_TFLOPS, GPU_LEAST_S = 60.0, 3.0
"""Assumed of a GPU: 10^12 operations a second, and least seconds a photo (detection, encoding and files). An A100 has
312 in bf16 by its data sheet, of which a fifth is 60; an L4 121, an H100 989. No full-size model was measured yet."""
CPU_SPREAD, GPU_SPREAD, GUESS_SPREAD = 2.0, 5.0, 3.0
"""Factors by which the true seconds may differ either way: another CPU; another card or share of its peak; a guess."""
MEASURED_SPREAD, FEW, FEW_SPREAD = 1.2, 5, 2.0
"""The least such factor of a measured rate, since photos to come may have other sizes; of fewer than FEW records."""


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


@dataclass(frozen=True)
class Rate:
    """Seconds of a photo, and the least and most that they may be."""

    seconds: float
    low: float
    high: float
    source: str
    """Where they come from: measured, counted or assumed."""

    @classmethod
    def within(cls, seconds: float, factor: float, source: str) -> "Rate":
        """Return a rate that may be wrong by a factor either way."""
        return cls(seconds, seconds / factor, seconds * factor, source)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated time and cost of the new photos."""

    rate: Rate
    measured_photos: int
    """Photos of this output that the rate was measured on; 0: it was not measured."""
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
        rate=rate,
        measured_photos=measured,
        actor_hours=round(hours, 4),
        gpu_hours=round(hours * config.gpus_per_actor, 4),
        cost=None if price is None else round(billed * price, 2),
    )


def measured_rate(pairs: Sequence[tuple[float, int]]) -> Rate:
    """Return the rate of seconds and photos by record; its interval is that of a ratio of sums (normal, 95 %)."""
    photos = sum(count for _, count in pairs)
    rate = sum(seconds for seconds, _ in pairs) / photos
    if len(pairs) < FEW:
        return Rate.within(rate, FEW_SPREAD, "measured")
    squares = sum((seconds - rate * count) ** 2 for seconds, count in pairs)
    half = 1.96 * math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / photos
    least = Rate.within(rate, MEASURED_SPREAD, "measured")
    return Rate(rate, max(min(rate - half, least.low), 0.0), max(rate + half, least.high), "measured")


def assumed_rate(config: RunConfig) -> Rate:
    """Return the seconds of a photo before any was measured."""
    work = work_of(config.method_config())
    if work is not None and config.gpus_per_actor > 0:
        low, seconds, high = (work.tflop / GPU_TFLOPS * factor for factor in (1 / GPU_SPREAD, 1, GPU_SPREAD))
        return Rate(max(seconds, GPU_LEAST_S), max(low, GPU_LEAST_S), max(high, GPU_LEAST_S * GPU_SPREAD), "counted")
    if work is not None and work.cpu_seconds is not None:
        return Rate.within(work.cpu_seconds, CPU_SPREAD, "counted")
    return Rate.within(GUESSES.get(config.profile, OTHER_GUESS), GUESS_SPREAD, "assumed")
