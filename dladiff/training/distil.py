"""Distil a large identity encoder into a small one: `python -m dladiff.training.distil --help`."""

from __future__ import annotations

import argparse
import copy
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
from dladiff.training.architectures import ARCHITECTURES, Network
from dladiff.training.data import Crop, align, augmented, training_crops
from dladiff.training.graph import export

TEACHERS = {
    "mobilefacenet_tf": "MIT",
    "mobilefacenet_relu6": "Apache-2.0",
    "mobileface_v1": "MIT",
    "mobilefacenet_casia": "",
    "mobilefacenet_y1": "",
}
"""Networks of encoders/ and their licences. A student of one without a licence must not be passed on."""
EMA_DECAY = 0.998
"""Decay of the moving average of the weights, about 500 steps."""
Teacher = Callable[[Tensor], Tensor]


def load_teacher(assets: Path, name: str) -> Teacher:
    """Return a teacher of encoders/, loaded by its graphnet.py: crops in [0, 1], `b 3 112 112`, to unit embeddings.

    A teacher of another crop (112 x 96) gets the middle of these. Raises ImportError: no loader.
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
        spare = (crops.shape[-1] - pre["size"][1]) // 2
        part = crops[..., spare : crops.shape[-1] - spare].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return functional.normalize(module.embed(net, pre, part).float(), dim=1)

    return embed


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Training crops, the 2 x 3 matrix that aligns them, and the teacher's unit embedding of each, `n d`."""

    crops: list[Crop]
    matrix: npt.NDArray[np.float64]
    targets: Tensor


def make_pool(assets: Path, name: str, max_crops: int, cache: Path | None) -> Pool:
    """Return at most `max_crops` crops of the people not held out, and their targets by teacher `name`.

    A target is the normalised mean of the teacher's embeddings of the crop and of its mirror image. `cache`: folder
    that keeps the targets of each teacher.
    """
    crops, matrix = training_crops(assets, max_crops)
    kept = cache / f"{name}-{len(crops)}.pt" if cache else None
    if kept and kept.exists():
        return Pool(crops=crops, matrix=matrix, targets=torch.load(kept, weights_only=True))
    teacher = load_teacher(assets, name)
    targets: list[Tensor] = []
    for start in range(0, len(crops), 32):
        batch = np.stack([align(c.pixels(), matrix) for c in crops[start : start + 32]])
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        targets.append(functional.normalize(teacher(x) + teacher(x.flip(3)), dim=1))
    pool = Pool(crops=crops, matrix=matrix, targets=torch.cat(targets).clone())
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(pool.targets, kept)
    return pool


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


def half(net: Network, x: Tensor) -> Tensor:
    """Return the embeddings, computed in bfloat16: two or three times faster on processors that have it."""
    with torch.autocast("cpu", torch.bfloat16):
        result: Tensor = net(x)
    return result.float()


def attacked(net: Network, x: Tensor, loss: Callable[[Tensor], Tensor], eps: float) -> Tensor:
    """Return the inputs `b 3 112 112` after one ascending sign step of `eps` / 255 (FGSM, Goodfellow et al. 2015)."""
    point = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(half(net, point)), point)
    return (x + eps / 127.5 * gradient.sign()).clamp_(-1, 1)


def follow(mean: Network, net: Network, steps: int) -> None:
    """Move the averaged weights and statistics towards those of `net`, faster in the first steps."""
    share = 1 - min(EMA_DECAY, (steps + 1) / (steps + 20))
    with torch.no_grad():
        for kept, new in zip(mean.state_dict().values(), net.state_dict().values(), strict=True):
            kept.lerp_(new, share) if kept.is_floating_point() else kept.copy_(new)


def train(net: Network, mean: Network | None, pool: Pool, options: argparse.Namespace, save: Callable[[], None]) -> int:
    """Train for `options.minutes` of processor time, saving at intervals; return the number of steps.

    `mean`: receives the averaged weights.
    """
    optimiser = torch.optim.AdamW(net.parameters(), lr=options.rate, weight_decay=0.02)
    rng = np.random.default_rng(options.seed)
    begin = saved = time.process_time()
    steps, epoch = 0, 0
    while True:
        order = rng.permutation(len(pool.crops))
        total, count = 0.0, 0
        for start in range(0, len(order) - options.batch + 1, options.batch):
            now = time.process_time()
            progress = (now - begin) / (60 * options.minutes)
            if progress >= 1:
                return steps
            warmup = min(1.0, (steps + 1) / options.warmup)
            for group in optimiser.param_groups:
                group["lr"] = options.rate * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            index = order[start : start + options.batch]
            target = pool.targets[torch.from_numpy(index)]

            def loss_at(student: Tensor, target: Tensor = target) -> Tensor:
                return loss_of(student, target, options.relation)

            x = _batch(pool, index, rng)
            if options.adversarial and steps % 2:
                x = attacked(net, x, loss_at, options.adversarial)
            loss = loss_at(half(net, x))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if mean is not None:
                follow(mean, net, steps)
            steps, total, count = steps + 1, total + float(loss.detach()), count + 1
            if steps % 40 == 0:
                print(f"{now - begin:.0f} s, epoch {epoch}, step {steps}, loss {total / count:.4f}", flush=True)
            if now - saved > options.save_every:
                saved = now
                save()
        epoch += 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True, help="folder with faces/ and encoders/")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), required=True)
    parser.add_argument("--teacher", choices=sorted(TEACHERS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--minutes", type=float, default=20.0, help="processor time of the training (default 20)")
    parser.add_argument("--crops", type=int, default=100_000, help="most crops to embed (default all)")
    parser.add_argument("--cache", type=Path, help="folder that keeps the teacher's embeddings")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=40, help="steps in which the learning rate rises")
    parser.add_argument("--relation", type=float, default=5.0, help="weight of the similarity matrix's term")
    parser.add_argument("--adversarial", type=float, default=0.0, help="FGSM step in every second batch, 1/255")
    parser.add_argument("--average", action="store_true", help="export the moving average of the weights")
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Embed the crops, train, and write the ONNX file."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    name = options.teacher
    pool = make_pool(options.assets, name, options.crops, options.cache)
    print(f"{len(pool.crops)} crops, embedded by {name} after {time.process_time():.0f} s", flush=True)
    net = ARCHITECTURES[options.architecture](pool.targets.shape[1]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = copy.deepcopy(net).eval() if options.average else None
    print(f"{sum(p.numel() for p in net.parameters())} parameters", flush=True)
    properties = {
        "licence": "research and non-commercial use, as the training collection",
        "teacher": f"{name} ({TEACHERS[name] or 'no licence: do not pass on'})",
        "architecture": options.architecture,
        "training": f"FGSM {options.adversarial:g}/255, {'averaged' if options.average else 'last'} weights",
        "trained_on": "Labeled Faces in the Wild, held-out people excluded",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)

    sample = np.stack([align(c.pixels(), pool.matrix) for c in pool.crops[:8]])

    def save() -> None:
        final = (net if mean is None else mean).eval()
        export(final, options.out, properties)
        print(f"saved, parity {check_export(final, options.out, sample):.5f}", flush=True)
        net.train()

    steps = train(net, mean, pool, options, save)
    save()
    print(f"{steps} steps", flush=True)


if __name__ == "__main__":
    main()
