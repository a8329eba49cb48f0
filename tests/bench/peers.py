"""The same photos under ASPL as a straight script and under every preset: `python -m tests.bench.peers`.

One person's photos (DLADIFF_ASSETS/photos/celebahq_103, four of set B; references: set A), the tiny profile, one
thread, one run. CPU seconds and FLOPs are those of protecting all photos, the models loaded before; the FLOPs are
counted in the same run, without detection, which runs in onnxruntime. ISM is that of one DreamBooth, by two encoders
that took no part (tests/acceptance/dreambooth.py). One person and one seed: for the order of costs, not of protection.

    python -m tests.bench.peers [--row NAME]... [--json FILE]
"""

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn
from dladiff.core.randomness import stream
from dladiff.diffusion.catalogue import EMBEDDED
from dladiff.diffusion.text import Prompt, TextEncoder, embed
from dladiff.service import Protector
from dladiff.settings.schedules import BaselineConfig, schedule_for
from dladiff.settings.schema import FinetuningConfig
from tests.acceptance.dreambooth import ENCODERS, FaceEmbedder, dreambooth, face_crop, generate, read, score
from tests.bench.straight import Straight

PERSON, PHOTOS = "celebahq_103", 4
SIDE = 128
"""Working resolution of the tiny profile, pixels."""
MARGIN = 0.3
"""Of a face's extent, kept around it in the straight script's square."""
STEPS, RATE = 300, 2e-4
"""Of DreamBooth."""
PICTURES = 16
CPU = torch.device("cpu")
Row = Callable[[Sequence[Pixels]], list[Pixels]]


class StraightAspl(Straight):
    """ASPL of Anti-DreamBooth (Van Le et al. 2023) as a script runs it; the text encoders are trained too."""

    def attack(
        self, clean: Tensor, x: Tensor, schedule: BaselineConfig, one: Generator, each: list[Generator]
    ) -> Tensor:
        """Return the perturbation of squares `n 3 r r`; the surrogate's copy learns `clean`, `m 3 r r`."""
        delta, model = torch.zeros_like(x), (self.dynamic, self.models.encoders)
        for _ in range(schedule.epochs):
            unet, self.models.encoders = copied = copy.deepcopy(model)
            self.fit(copied, clean, schedule, one)
            for _ in range(schedule.steps):
                point = (x + delta).requires_grad_(True)
                loss = self.denoising(unet, point, self.models.draw(each, x.shape[-1])) * len(x)
                (gradient,) = torch.autograd.grad(loss, point)
                delta = (delta + schedule.step_size * gradient.sign()).clamp(-schedule.eta, schedule.eta)
                delta = ((x + delta).clamp(0, 1) - x).detach()
            self.models.encoders = model[1]
            self.fit(model, x + delta, schedule, one)
        return delta

    def fit(
        self,
        model: tuple[UNet2DConditionModel, list[TextEncoder]],
        images: Tensor,
        schedule: BaselineConfig,
        one: Generator,
    ) -> None:
        """Train a UNet and its text encoders, one photo a step, with a fresh optimiser."""
        weights = [*model[0].parameters(), *(p for text in model[1] for p in text.network.parameters())]
        for parameter in weights:
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=1e-2)
        for step in range(schedule.training):
            photo = images[step % len(images)][None]
            self.denoising(model[0], photo, self.models.draw([one], images.shape[-1])).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            optimiser.zero_grad()

    def prompt(self) -> Prompt:
        """Return the prompt's conditioning by the present text encoders."""
        return embed(self.models.encoders, self.config.prompt)


def straight_aspl(embedder: FaceEmbedder) -> Row:
    """Return ASPL on a square around each face, its change enlarged to the photo's own pixels."""

    def protect(photos: Sequence[Pixels]) -> list[Pixels]:
        straight = StraightAspl("embedded", CPU, FinetuningConfig())
        boxes = [square(photo, embedder) for photo in photos]
        faces = [
            cv2.resize(photo[y : y + side, x : x + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            for photo, (x, y, side) in zip(photos, boxes, strict=True)
        ]
        squares = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).float() / 255
        each = [stream(0, str(number)) for number in range(len(squares))]
        found = straight.attack(squares, squares, schedule_for("aspl", "embedded"), stream(0), each)
        made = []
        for photo, (x, y, side), change in zip(photos, boxes, found.permute(0, 2, 3, 1).numpy(), strict=True):
            whole = photo.astype(np.float32)
            whole[y : y + side, x : x + side] += 255 * cv2.resize(change, (side, side), interpolation=cv2.INTER_LINEAR)
            made.append(whole.clip(0, 255).round().astype(np.uint8))
        return made

    return protect


def square(photo: Pixels, embedder: FaceEmbedder) -> tuple[int, int, int]:
    """Return x, y and side of a square around the largest face, within the photo."""
    points = embedder.landmarks(photo)
    if points is None:
        raise SystemExit("no face in a photo: name photos with one face each")
    low, high = points.min(0), points.max(0)
    side = int(min((high - low).max() * (2 + 2 * MARGIN), *photo.shape[:2]))
    x, y = (round(float(v)) for v in (low + high) / 2 - side / 2)
    return min(max(0, x), photo.shape[1] - side), min(max(0, y), photo.shape[0] - side), side


def ours(**settings: Any) -> Row:
    """Return the product on this machine, without Ray."""
    protector = Protector({"profile": "tiny"} | settings, seed=0, threads=1)

    def protect(photos: Sequence[Pixels]) -> list[Pixels]:
        given = [PhotoIn(key=str(number), pixels=photo) for number, photo in enumerate(photos)]
        return [out.pixels for out in protector.protect_identity("a", given, []).photos]

    return protect


def rows(embedder: FaceEmbedder) -> dict[str, Callable[[], Row]]:
    """Return what makes each row's protection, by the row's name."""
    visible = {"protection": "aspl", "layers": "finetuning"}
    return {
        "clean": lambda: list,
        "ASPL, straight script": lambda: straight_aspl(embedder),
        "aspl": lambda: ours(overrides=visible),
        "aspl, visibility 75": lambda: ours(overrides=visible | {"visibility": 75}),
        **{name: partial(ours, preset=name) for name in ("faint", "balanced", "strong", "paper")},
    }


def visibility(before: Pixels, after: Pixels, box: tuple[int, int, int]) -> tuple[float, float]:
    """Return SSIMULACRA2 of a photo and of the square around its face, by the package."""
    import ssimulacra2

    x, y, side = box
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in ((before, after), (before[y : y + side, x : x + side], after[y : y + side, x : x + side])):
            files = [Path(folder) / name for name in ("a.png", "b.png")]
            for file, pixels in zip(files, pair, strict=True):
                Image.fromarray(pixels).save(file)
            scores.append(float(ssimulacra2.compute_ssimulacra2(*map(str, files))))
    return scores[0], scores[1]


def measured(name: str, make: Callable[[], Row], photos: Sequence[Pixels], attacker: "Attacker") -> dict[str, Any]:
    """Protect the photos and attack the result; return a row of the table."""
    protect, counter = make(), FlopCounterMode(display=False)
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(counter)
        start = time.process_time()
        made = protect(photos)
        spent = time.process_time() - start
    seen = [visibility(a, b, square(a, attacker.embedder)) for a, b in zip(photos, made, strict=True)]
    return {
        "row": name,
        "seconds": spent / len(photos),
        "tflop": counter.get_total_flops() / 1e12 / len(photos),
        "ssimulacra2": float(np.mean([whole for whole, _ in seen])),
        "ssimulacra2_face": float(np.mean([face for _, face in seen])),
        **attacker.attack(made),
    }


class Attacker:
    """One DreamBooth on the tiny model, and two encoders that took no part."""

    def __init__(self, embedder: FaceEmbedder, references: Sequence[Pixels]) -> None:
        self.embedder = embedder
        self.pipe = StableDiffusionPipeline.from_pretrained(
            EMBEDDED, safety_checker=None, torch_dtype=torch.float32, local_files_only=True
        )
        found = [e for photo in references if (e := embedder.embed(photo)) is not None]
        sums = {name: np.sum([e[name] for e in found], 0) for name in ENCODERS}
        self.reference = {name: total / np.linalg.norm(total) for name, total in sums.items()}

    def attack(self, photos: Sequence[Pixels]) -> dict[str, float]:
        """Train on the photos' faces, generate, and return the mean cosines."""
        faces = [face_crop(p, points) for p in photos if (points := self.embedder.landmarks(p)) is not None]
        unet = dreambooth(self.pipe, faces, 0, STEPS, RATE)
        return score(self.embedder, generate(self.pipe, unet, PICTURES), self.reference)


def main() -> None:
    """Print the table, each row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", help="only these rows")
    parser.add_argument("--json", type=Path, help="append each row to this file, a JSON object a line")
    options = parser.parse_args()
    assets = Path(os.environ.get("DLADIFF_ASSETS", "../shared/assets"))
    folder = assets / "photos" / PERSON
    if not folder.is_dir():
        parser.error(f"no {folder}: set DLADIFF_ASSETS")
    torch.set_num_threads(1)
    embedder = FaceEmbedder(assets)
    photos = [read(file) for file in sorted(folder.glob("set_B_*"))[:PHOTOS]]
    attacker = Attacker(embedder, [read(file) for file in sorted(folder.glob("set_A_*"))])
    known = rows(embedder)
    if unknown := [name for name in options.row or () if name not in known]:
        parser.error(f"no row {unknown[0]!r}; known: {', '.join(known)}")
    table = Table(
        "protected by", "CPU s a photo", "TFLOP a photo", "SSIMULACRA2", "face",
        *(f"ISM {name.removeprefix('mobilefacenet_')}" for name in ENCODERS), "FDR",
        title=f"{len(photos)} photos of one person",
    )  # fmt: skip
    for name in options.row or known:
        found = measured(name, known[name], photos, attacker)
        if options.json:
            with options.json.open("a") as log:
                log.write(json.dumps(found) + "\n")
        table.add_row(
            name, f"{found['seconds']:.1f}", f"{found['tflop']:.2f}", f"{found['ssimulacra2']:.1f}",
            f"{found['ssimulacra2_face']:.1f}", *(f"{found[f'ism_all_{e}']:.3f}" for e in ENCODERS),
            f"{found['fdr']:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
