"""Layer 1 of Stable Diffusion 2.1 at full width, 512 px, bf16, on a CUDA device, with random weights.

    python -m tests.bench.gpu               # ours, and the same algorithm written straight down
    python -m tests.bench.gpu --gpu-memory 24GB   # ours alone, within such a card; the straight one needs more
    python -m tests.bench.gpu --formats     # ours alone, by number format and memory layout

Wall seconds of the paper preset. Lines are printed as soon as they are measured. Takes minutes, one for the model.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.presets import GPU_MEMORY
from tests.bench.speed import (
    DYNAMIC,
    PAPER,
    STAGES,
    Case,
    Costs,
    counts,
    flops,
    intervals,
    measured,
    now,
    peak,
    sd21,
)


def on_gpu(case: Case, best: float, straight: bool, say: Callable[[str], None]) -> None:
    """Print the paper preset's seconds, FLOPs and share of the peak of each implementation, as soon as measured.

    The straight one, and ours without CUDA graphs, run a short schedule; ours with CUDA graphs runs the whole one.
    """
    resident = Surrogate(case.folder, case.device)
    resident.use_cuda_graphs = False
    say(f"{case.title}, {case.photos} photos of {case.side} px")
    clock = partial(now, case.device)
    work = flops(case, resident)  # also warms up
    _say(say, "ours, not recorded", counts(PAPER, True), measured(case, resident, clock), work, best)
    resident.use_cuda_graphs = True
    forget(case.device)
    _say(say, "ours", counts(PAPER, True), measured(case, resident, clock, {}), work, best)
    if case.device.type == "cuda":
        held = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        say("ours: peak memory {:.1f} GiB in use, {:.1f} GiB held".format(*(size / 2**30 for size in held)))
    if straight:
        del resident
        forget(case.device)
        work = flops(case, None)
        _say(say, "straight", counts(PAPER, False), measured(case, None, clock), work, best)


def _say(say: Callable[[str], None], name: str, steps: dict[str, int], taken: Costs, work: Costs, best: float) -> None:
    parts = [f"{stage} {steps[stage] * taken[stage]:.2f} s" for stage in STAGES]
    seconds, count = (sum(steps[stage] * costs[stage] for stage in STAGES) for costs in (taken, work))
    parts += [f"all {seconds:.1f} s", f"{count / 1e12:.0f} TFLOP", f"{count / seconds / best:.0%} of the peak"]
    say(f"{name}: {', '.join(parts)}")


def forget(device: torch.device) -> None:
    """Give back what nobody holds any more, and count the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


FORMATS = {
    "VAE in bf16 by autocast": (torch.float32, torch.channels_last, torch.contiguous_format, False),
    "the same, contiguous": (torch.float32, torch.contiguous_format, torch.contiguous_format, False),
    "VAE in bf16 throughout": (torch.bfloat16, torch.channels_last, torch.contiguous_format, False),
    "the same throughout, contiguous": (torch.bfloat16, torch.contiguous_format, torch.contiguous_format, False),
    "VAE in bf16 throughout, UNets channels_last": (torch.bfloat16, torch.channels_last, torch.channels_last, False),
    "the same, cuDNN tries its kernels": (torch.bfloat16, torch.channels_last, torch.channels_last, True),
}
"""The VAE's type and layout, the UNets' layout, and whether cuDNN times its kernels before it takes one."""
LONGER = {"iter_ft": 24, "iter_opt": 7}
LAST = 12  # intervals of each stage that count: once everything is recorded


def formats(case: Case, say: Callable[[str], None]) -> None:
    """Say a step's milliseconds by number format and memory layout, and the paper preset's seconds, as they come."""
    resident = Surrogate(case.folder, case.device)
    say(f"{case.title}, {case.photos} photos of {case.side} px: milliseconds of a step")
    for name, (kind, vae, unets, tried) in FORMATS.items():
        torch.backends.cudnn.benchmark = tried
        resident.vae.to(kind, memory_format=vae)
        resident.fresh_network().to(memory_format=unets)
        resident.freeze(resident.unet).to(memory_format=unets)
        found = intervals(case, resident, partial(now, case.device), LONGER)
        steps = counts(PAPER, True)
        encoded = PAPER.iter_3 / (PAPER.iter_3 + 1)  # one of the dynamic surrogate's intervals encodes
        each = {s: sum(found[s][-LAST:]) / LAST / (encoded if s == DYNAMIC else 1) for s in STAGES[1:]}
        cells = [f"{stage} {1000 * each[stage]:.1f}" for stage in STAGES[1:]]
        say(f"{name}: {', '.join(cells)}; preset {sum(steps[s] * each[s] for s in STAGES[1:]):.1f} s")
        forget(case.device)
    torch.backends.cudnn.benchmark = False


def main() -> None:
    """Print one line for each implementation, or for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--gpu-memory", choices=GPU_MEMORY)
    parser.add_argument("--formats", action="store_true")
    parser.add_argument("--model", type=Path, help="keep the model in this folder, or take the one there")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device here; python -m tests.bench.memory counts the memory without one")
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    say: Callable[[str], None] = partial(print, flush=True)
    device = torch.device("cuda")
    best = peak(device)
    say(f"{torch.cuda.get_device_name()}, matrix product: {best / 1e12:.0f} TFLOP/s")
    config = PAPER.replaced(**GPU_MEMORY[options.gpu_memory]["finetuning"]) if options.gpu_memory else PAPER
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder)
        if not (model / "model_index.json").is_file():
            sd21(model, 1)
        case = Case("SD 2.1", model, 512, 16, options.photos, device, config)
        if options.formats:
            formats(case, say)
        else:
            on_gpu(case, best, options.gpu_memory is None, say)


if __name__ == "__main__":
    main()
