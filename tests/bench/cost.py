"""What a photo costs, the default beside the paper's schedule: `python -m tests.bench.cost`.

The tiny profile protects one portrait of 512 px on one thread: CPU seconds, and FLOPs counted in a second run (without
detection, which runs in onnxruntime). Of Stable Diffusion 2.1 at full size the FLOPs of layer 1 are counted on tensors
without values: the latent push of the default, and Algorithm 1. Compare ratios, within one run only.
"""

import argparse
import time
from contextlib import ExitStack
from unittest import mock

import cv2
import numpy as np
import skimage.data
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn
from dladiff.core.views import attacker_views
from dladiff.service import Protector
from dladiff.settings.schema import FinetuningConfig, method_config
from tests.bench.memory import Counter, replaced, weightless
from tests.bench.speed import Case, counts, flops

STRENGTHS = ("balanced", "paper")
SIDE = 512


def portrait() -> Pixels:
    """Return NASA's portrait of Eileen Collins, 512 px."""
    return cv2.resize(np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352]), (SIDE, SIDE))


def tiny(preset: str, counter: FlopCounterMode | None = None) -> float:
    """Protect the portrait and return CPU seconds; a counter counts the FLOPs."""
    protector = Protector({"profile": "tiny", "preset": preset}, seed=0, threads=1)
    with ExitStack() as stack:
        if counter is not None:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(counter)
        start = time.process_time()
        protector.protect_identity("a", [PhotoIn(key="a", pixels=portrait())], [])
        return time.process_time() - start


def counted(preset: str) -> float:
    """Count the FLOPs of protecting the portrait."""
    counter = FlopCounterMode(display=False)
    tiny(preset, counter)
    return float(counter.get_total_flops())


def latent_push(profile: str = "sd21") -> float:
    """Count the FLOPs of the latent push of one square photo with one face.

    The VAEs of Stable Diffusion, SDXL, SD 3.5, FLUX.1 and FLUX.2 have encoders of one architecture.
    """
    config = method_config(profile, "balanced", {})
    side = config.resolution
    views = len(attacker_views(side, side, [(side / 4, side / 4, side * 3 / 4, side * 3 / 4)], config.max_squares))
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch.object(nn.Module, "_apply", replaced))
        surrogate = weightless()
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = stack.enter_context(FlopCounterMode(display=False))
        view = torch.zeros(1, 3, side, side, requires_grad=True)
        with surrogate.autocast():
            mean = surrogate.encode(view).mean
        torch.autograd.grad(mean.square().sum(), view)
        one = counter.get_total_flops()
    return float(one * config.joint.steps * (views + 1))  # the whole photo's views, then the face's again


def algorithm_1() -> float:
    """Count the FLOPs of Algorithm 1 of one square photo on Stable Diffusion 2.1, the paper's schedule."""
    config = FinetuningConfig()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", replaced))
        stack.enter_context(Counter())  # answers where the code asks for a value
        case = Case("Stable Diffusion 2.1", "", SIDE, config.attention_resolution, 1)
        each = flops(case, weightless())
    return sum(each[stage] * steps for stage, steps in counts(config, ours=True).items())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("tiny", "sd21"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    if options.only != "sd21":
        table = Table("preset", "CPU seconds", "ratio", "TFLOP", "ratio", title=f"tiny, one portrait of {SIDE} px")
        rows = [(name, tiny(name), counted(name) / 1e12) for name in STRENGTHS]
        for name, seconds, work in rows:
            ratios = (f"{seconds / rows[0][1]:.1f}", f"{work / rows[0][2]:.1f}")
            table.add_row(name, f"{seconds:.0f}", ratios[0], f"{work:.2f}", ratios[1])
        console.print(table)
    if options.only != "tiny":
        table = Table("layer 1", "TFLOP", "ratio", title=f"Stable Diffusion 2.1, one photo of {SIDE} px")
        latents, paper = latent_push(), algorithm_1()
        table.add_row("latent push, the default", f"{latents / 1e12:.0f}", "1.0")
        large = latent_push("sdxl")
        table.add_row("latent push of the profile sdxl, 1,024 px", f"{large / 1e12:.0f}", f"{large / latents:.1f}")
        table.add_row("Algorithm 1, paper", f"{paper / 1e12:.0f}", f"{paper / latents:.1f}")
        console.print(table)


if __name__ == "__main__":
    main()
