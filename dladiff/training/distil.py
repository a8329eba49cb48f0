"""Distil a large identity encoder into a small one: `python -m dladiff.training.distil --help`."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.faces.onnx_session import onnx_session
from dladiff.training.architectures import ARCHITECTURES, Network, export
from dladiff.training.data import Crop, align, augmented, training_crops

TEACHERS = {
    "mobile": ("mobilefacenet_relu6", "Apache-2.0"),
    "residual": ("mobilefacenet_tf", "MIT"),
}
Teacher = Callable[[Tensor], Tensor]


def load_teacher(assets: Path, name: str) -> Teacher:
    """Return a teacher of encoders/, loaded by its graphnet.py: crops in [0, 1], `b 3 112 112`, to unit embeddings.

    Raises ImportError: no loader.
    """
    loader = assets / "encoders" / "graphnet.py"
    spec = importlib.util.spec_from_file_location("graphnet", loader)
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader at {loader}")
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    net, pre = module.load(str(loader.with_name(name + ".safetensors")))

    def embed(crops: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = module.embed(net, pre, crops)
        return result

    return embed


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Training crops, the 2 x 3 matrix that aligns them, and the teacher's unit embedding of each, `n d`."""

    crops: list[Crop]
    matrix: npt.NDArray[np.float64]
    targets: Tensor


def make_pool(assets: Path, teacher: Teacher, max_crops: int) -> Pool:
    """Return at most `max_crops` crops of the people not held out, and their targets.

    A target is the normalised mean of the teacher's embeddings of the crop and of its mirror image.
    """
    crops, matrix = training_crops(assets, max_crops)
    targets: list[Tensor] = []
    for start in range(0, len(crops), 32):
        batch = np.stack([align(c.pixels(), matrix) for c in crops[start : start + 32]])
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        targets.append(functional.normalize(teacher(x) + teacher(x.flip(3)), dim=1))
    return Pool(crops=crops, matrix=matrix, targets=torch.cat(targets).clone())


def _batch(pool: Pool, index: npt.NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """Return freshly augmented crops `b 3 112 112` in the student's input scale."""
    images = np.stack([augmented(pool.crops[i].pixels(), pool.matrix, rng) for i in index])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)
    return x.contiguous(memory_format=torch.channels_last)


def loss_of(student: Tensor, target: Tensor, relation: float) -> Tensor:
    """Return the mean of 1 - cosine, plus `relation` times the mean squared error of the batch's similarity matrix."""
    unit = functional.normalize(student, dim=1)
    distance = 1 - (unit * target).sum(1).mean()
    return distance + relation * functional.mse_loss(unit @ unit.T, target @ target.T)


def check_export(net: Network, path: Path, crops: Pixels) -> float:
    """Return the smallest cosine over the crops between the network and the exported file in onnxruntime."""
    x = (crops.astype(np.float32).transpose(0, 3, 1, 2) - 127.5) / 127.5
    exported = torch.from_numpy(np.asarray(onnx_session(path).run(None, {"input": x})[0]))
    with torch.inference_mode():
        return float(functional.cosine_similarity(exported, net(torch.from_numpy(x)), dim=1).min())


def train(
    net: Network, pool: Pool, options: argparse.Namespace, clock: tuple[float, float], save: Callable[[], None]
) -> int:
    """Train between the two times of `clock` (begin and end, s), saving at intervals; return the number of steps."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=options.rate, weight_decay=0.02)
    rng = np.random.default_rng(options.seed)
    begin, end = clock
    saved, steps, epoch = begin, 0, 0
    while True:
        order = rng.permutation(len(pool.crops))
        total, count = 0.0, 0
        for start in range(0, len(order) - options.batch + 1, options.batch):
            now = time.monotonic()
            if now > end:
                return steps
            progress = (now - begin) / (end - begin)
            warmup = min(1.0, (steps + 1) / 40)
            for group in optimiser.param_groups:
                group["lr"] = options.rate * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            index = order[start : start + options.batch]
            loss = loss_of(net(_batch(pool, index, rng)), pool.targets[torch.from_numpy(index)], options.relation)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            steps, total, count = steps + 1, total + float(loss.detach()), count + 1
            if steps % 40 == 0:
                print(f"{now - begin:.0f} s, epoch {epoch}, step {steps}, loss {total / count:.4f}", flush=True)
            if now - saved > options.save_every:
                saved = now
                save()
        epoch += 1


def main() -> None:
    """Embed the crops, train, and write the ONNX file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True, help="folder with faces/ and encoders/")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--minutes", type=float, default=20.0, help="wall clock for everything (default 20)")
    parser.add_argument("--crops", type=int, default=100_000, help="most crops to embed (default all)")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--relation", type=float, default=5.0, help="weight of the similarity matrix's term")
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    begin = time.monotonic()
    end = begin + 60 * options.minutes
    name, licence = TEACHERS[options.architecture]
    pool = make_pool(options.assets, load_teacher(options.assets, name), options.crops)
    print(f"{len(pool.crops)} crops embedded by {name} in {time.monotonic() - begin:.0f} s", flush=True)
    net = ARCHITECTURES[options.architecture](pool.targets.shape[1]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(f"{sum(p.numel() for p in net.parameters())} parameters", flush=True)
    properties = {
        "licence": "research and non-commercial use, as the training collection",
        "teacher": f"{name} ({licence})",
        "architecture": options.architecture,
        "trained_on": "Labeled Faces in the Wild, held-out people excluded",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)

    sample = np.stack([align(c.pixels(), pool.matrix) for c in pool.crops[:8]])

    def save() -> None:
        net.eval()
        export(net, options.out, properties)
        print(f"saved, parity {check_export(net, options.out, sample):.5f}", flush=True)
        net.train()

    steps = train(net, pool, options, (time.monotonic(), end), save)
    save()
    print(f"{steps} steps", flush=True)


if __name__ == "__main__":
    main()
