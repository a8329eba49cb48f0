"""One identity on Stable Diffusion 2.1's exact layout with random weights: `python -m tests.bench.identity`.

    python -m tests.bench.identity --preset balanced --preset paper     # on a CUDA device
    python -m tests.bench.identity --cpu --width 4 --photos 1           # a quarter of the width, on this CPU

The whole method of the profile `sd21` (a random IResNet-50 as its encoder) on photos of 512 px. Wall seconds of a first
identity, which loads kernels and records steps, and of a second one; peak GPU memory. With --flop also the FLOPs of the
second, and its share of the measured bf16 matrix peak. Prints a JSON object for each preset.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dladiff.core.exchange import PhotoIn
from dladiff.service import Protector
from tests.bench.speed import peak, sd21
from tests.support.iresnet import export, random_iresnet

SIDE = 512
GIB = 2**30


def portraits(count: int) -> list[PhotoIn]:
    """Return NASA's portrait of Eileen Collins, 512 px, moved a little from photo to photo."""
    picture = skimage.data.astronaut()
    cut = [picture[4 * n : 256 + 4 * n, 96 - 4 * n : 352 - 4 * n] for n in range(count)]
    return [
        PhotoIn(key=str(n), pixels=cv2.resize(np.ascontiguousarray(part), (SIDE, SIDE))) for n, part in enumerate(cut)
    ]


def timed(protector: Protector, photos: Sequence[PhotoIn], device: torch.device) -> tuple[float, dict[str, float]]:
    """Protect an identity; return its wall seconds, and those of each stage."""
    start = time.perf_counter()
    stages = protector.protect_identity("a", photos, []).seconds
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, stages


def measured(settings: dict[str, Any], photos: Sequence[PhotoIn], device: torch.device, flop: bool) -> dict[str, Any]:
    """Return the figures of one preset."""
    protector = Protector(settings, seed=0, threads=1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first, _ = timed(protector, photos, device)
    second, stages = timed(protector, photos, device)
    found: dict[str, Any] = {
        "preset": settings["preset"],
        "photos": len(photos),
        "first_s": round(first, 2),
        "second_s": round(second, 2),
        "stages_s": {name: round(value, 2) for name, value in stages.items()},
    }
    if device.type == "cuda":
        held = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        found["peak_gib"], found["held_gib"] = (round(size / GIB, 2) for size in held)
    else:
        found["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2)
    if flop:
        counter = FlopCounterMode(display=False)
        with ExitStack() as stack:
            if device.type == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(counter)
            timed(protector, photos, device)
        best = peak(device)
        found["tflop"] = round(counter.get_total_flops() / 1e12, 1)
        found["peak_tflop_s"] = round(best / 1e12, 2)
        found["share_of_peak"] = round(counter.get_total_flops() / second / best, 3)
    return found


def main() -> None:
    """Print a line for each preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="balanced if none is named")
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--model", type=Path, help="keep the model in this folder, or take the one there")
    parser.add_argument("--width", type=int, default=1, choices=(1, 4), help="the networks' width is divided by it")
    parser.add_argument("--steps", type=int, help="of the joint layers, instead of the profile's")
    parser.add_argument("--flop", action="store_true", help="count the FLOPs in a third identity; no CUDA graphs then")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("no CUDA device here; --cpu --width 4 runs a quarter of the width on this CPU")
    device = torch.device("cpu" if options.cpu else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "model"
        if not (model / "model_index.json").is_file():
            model.mkdir(parents=True, exist_ok=True)
            sd21(model, options.width)
        encoder = export(random_iresnet(50), Path(folder) / "iresnet50.onnx")
        for preset in options.preset or ["balanced"]:
            overrides: dict[str, Any] = {"model": str(model), "encoders": [str(encoder)]}
            if options.steps:
                overrides["joint"] = {"steps": options.steps}
            settings = {"profile": "sd21", "preset": preset, "overrides": overrides, "gpu": not options.cpu}
            print(json.dumps(measured(settings, portraits(options.photos), device, options.flop)), flush=True)


if __name__ == "__main__":
    main()
