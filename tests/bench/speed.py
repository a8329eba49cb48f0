"""Layer 1 written straight down beside ours, in one run on one thread: `python -m tests.bench.speed`.

    python -m tests.bench.speed --only tiny        # what `make bench` runs

Seconds of each stage are those of one batch of photos under the paper preset, taken from the mean step of a
short schedule (two epochs): medians of several runs, both in turn, of this process's own CPU time, which other
processes disturb least. FLOPs are counted, not estimated; the share of peak is against this machine's own matrix
multiplication. Compare ratios, and within one run only. `tests.bench.gpu` does the same on a GPU.
"""

import argparse
import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

from dladiff.core.randomness import stream
from dladiff.diffusion.surrogate import EMBEDDED, Surrogate
from dladiff.layers import finetuning as finetuning_layer
from dladiff.settings.schema import FinetuningConfig
from tests.bench.straight import Straight

CPU = torch.device("cpu")
PAPER = FinetuningConfig()
ONCE, STATIC, ATTENTION, DENOISING, DYNAMIC = STAGES = (
    "once an identity",
    "static surrogate",
    "attention steps",
    "denoising steps",
    "dynamic surrogate",
)
Costs = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A model folder, the working resolution (px), the maps' side (cells) and the photos of an identity."""

    title: str
    folder: str | Path
    side: int
    maps: int
    photos: int
    device: torch.device = CPU
    config: FinetuningConfig = PAPER


def counts(config: FinetuningConfig, ours: bool) -> dict[str, int]:
    """Steps of each stage. Ours leaves out the last epoch's training, which nothing reads."""
    epochs, training = config.iter_opt, config.iter_opt - ours
    steps = (1, config.iter_ft, epochs * config.iter_1, epochs * config.iter_2, training * config.iter_3)
    return dict(zip(STAGES, steps, strict=True))


def order(config: FinetuningConfig, ours: bool) -> list[str]:
    """The stage of each interval between two marks: ours encodes photos ahead, which is a mark of its own."""
    start, static = [ONCE], [STATIC] * config.iter_ft
    attack = [ATTENTION] * config.iter_1 + [DENOISING] * config.iter_2
    train = [DYNAMIC] * config.iter_3
    if not ours:
        return start + static + (attack + train) * config.iter_opt
    return start + [ONCE] + static + [ONCE] + attack + [DYNAMIC, *train, *attack] * (config.iter_opt - 1)


SHORT = {"iter_ft": 3, "iter_opt": 2, "iter_1": 2, "iter_2": 2}


def intervals(
    case: Case, resident: Surrogate | None, read: Callable[[], float], schedule: dict[str, Any]
) -> dict[str, list[float]]:
    """Run a schedule once, ours on a resident surrogate or straight; return what passes from mark to mark, by stage.

    `read` (a clock, or a count of FLOPs) is marked whenever a step draws its noise or photos are encoded ahead.
    """
    config = case.config.replaced(**schedule, attention_resolution=case.maps)
    x = torch.rand(case.photos, 3, case.side, case.side, generator=stream(0)).to(case.device)
    one, each = stream(1), [stream(2, str(i)) for i in range(case.photos)]
    marks = [read()]

    def mark(surrogate: Surrogate) -> None:
        for name in ("draw", "encode_fixed"):
            setattr(surrogate, name, marking(getattr(Surrogate, name).__get__(surrogate)))

    def marking(call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*arguments: Any) -> Any:
            marks.append(read())
            return call(*arguments)

        return marked

    if resident is None:
        straight = Straight(case.folder, case.device, config)
        mark(straight.models)
        straight.protect(x, x, one, each)
    else:
        mark(resident)
        static = finetuning_layer.static_surrogate(resident, x, config, one)
        finetuning_layer.perturb(resident, static, x, config, each)
    marks.append(read())
    found: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for (start, end), stage in zip(itertools.pairwise(marks), order(config, resident is not None), strict=True):
        found[stage].append(end - start)
    return found


def measured(
    case: Case, resident: Surrogate | None, read: Callable[[], float], schedule: dict[str, Any] = SHORT
) -> Costs:
    """Return the mean cost of a step of each stage, over a schedule."""
    found = intervals(case, resident, read, schedule)
    steps = counts(case.config.replaced(**schedule), resident is not None)
    return {stage: sum(found[stage]) / steps[stage] for stage in STAGES}


def flops(case: Case, resident: Surrogate | None) -> Costs:
    """Count the FLOPs of a step; on the CPU by the plain attention kernel: the counter does not know the fused one."""
    plain = sdpa_kernel(SDPBackend.MATH) if case.device.type == "cpu" else contextlib.nullcontext()
    with FlopCounterMode(display=False) as counter, plain:
        return measured(case, resident, counter.get_total_flops)


def now(device: torch.device) -> float:
    """Seconds: of this process's own time on the CPU, of the clock on a GPU, once its queue is empty."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: torch.device) -> float:
    """FLOP/s of a square matrix product, the best of ten: single precision on this thread, or bf16 on the GPU."""
    side, kind = (2048, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    a = torch.rand(side, side, dtype=kind, device=device)
    seconds = []
    for _ in range(10):
        start = now(device)
        a @ a
        seconds.append(now(device) - start)
    return 2 * side**3 / min(seconds)


def compare(case: Case, runs: int, best: float) -> Table:
    """Measure both in turn; return a table of the paper preset's seconds, ratios, FLOPs and shares of the peak."""
    resident = Surrogate(case.folder, case.device)
    implementations = (None, resident)
    work = [flops(case, one) for one in implementations]  # also warms up
    taken: list[list[Costs]] = [[], []]
    for _ in range(runs):
        for one, found in zip(implementations, taken, strict=True):
            found.append(measured(case, one, partial(now, case.device)))
    steps = [counts(PAPER, one is not None) for one in implementations]
    rows: list[Any] = []
    for stage in STAGES:
        seconds = [steps[i][stage] * median(run[stage] for run in taken[i]) for i in (0, 1)]
        rows.append((stage, *seconds, *(steps[i][stage] * work[i][stage] for i in (0, 1))))
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 5))))
    columns = ("stage", "straight s", "ours s", "ratio", "straight TFLOP", "ours TFLOP", "straight of peak", "ours")
    table = Table(*columns, title=f"{case.title}, {case.photos} photos of {case.side} px, maps of {case.maps} squared")
    for stage, a, b, f, g in rows:
        shares = (f"{f / a / best:.0%}", f"{g / b / best:.0%}")
        table.add_row(stage, f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}", f"{f / 1e12:.2f}", f"{g / 1e12:.2f}", *shares)
    return table


def sd21(folder: Path, part: int) -> Path:
    """Write a bundle in the layout of SD 2.1 at a `part` (1 or 4) of its width, with random weights."""
    torch.manual_seed(0)
    UNet2DConditionModel(
        block_out_channels=tuple(width // part for width in (320, 640, 1280, 1280)),
        attention_head_dim=(5, 10, 20, 20),  # diffusers' name for the number of heads
        norm_num_groups=32 if part == 1 else 16,
        cross_attention_dim=1024,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=tuple(width // part for width in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    config = CLIPTextConfig.from_pretrained(EMBEDDED / "text_encoder")
    config.update({"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16})
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    DDPMScheduler.from_pretrained(EMBEDDED, subfolder="scheduler").save_pretrained(folder / "scheduler")
    shutil.copytree(EMBEDDED / "tokenizer", folder / "tokenizer")
    shutil.copy(EMBEDDED / "model_index.json", folder)
    return folder


def main() -> None:
    """Print one table a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--side", type=int, default=256, help="px of the SD 2.1 layout; its maps are side / 32 cells")
    parser.add_argument("--only", choices=("tiny", "sd21"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    best = peak(CPU)
    console = Console(width=140)
    console.print(f"matrix product: {best / 1e9:.0f} GFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "sd21":
            console.print(compare(Case("tiny model", "embedded", 128, 16, options.photos), options.runs, best))
        if options.only != "tiny":
            layout = sd21(Path(folder), 4)
            case = Case("SD 2.1 layout, quarter width", layout, options.side, options.side // 32, options.photos)
            console.print(compare(case, options.runs, best))


if __name__ == "__main__":
    main()
