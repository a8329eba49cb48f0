"""Variants of the loop that keeps a perturbation within a visibility budget, compared on real portraits.

Each variant protects the same photos at the same budget with the tiny profile. The table has what is seen in the
stored file: SSIMULACRA2 of the photo, of the face, and of the photo without its first rows and columns; Butteraugli
and FLIP of the face, which nothing optimises; the shift of areas' colours; the cosines of optimised encoders and of one
that took no part. A face below 256 px is enlarged to it for Butteraugli and FLIP as well. FLIP (Andersson 2020, mean
error times 100) is there where the package flip-evaluator is installed.

    python -m tests.acceptance.budget_variants PHOTO... [--visibility 75] [--variant NAME]... [--save DIR]
"""

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dladiff.core import colour_shift, visibility
from dladiff.core.arrays import Pixels
from dladiff.core.colour_shift import ColourShift
from dladiff.core.exchange import PhotoIn
from dladiff.core.pixels import to_float
from dladiff.core.transforms import blur
from dladiff.layers import budget, joint
from dladiff.protect import protect
from dladiff.service import Protector

SEED = 0
ROWS, COLUMNS = 3, 5
"""Cut away before the photo is scored again."""
LUMA = (0.299, 0.587, 0.114)
MODULES = (budget, colour_shift, joint, visibility)
"""Where the constants of variants are."""


def contrast(picture: Tensor) -> Tensor:
    """Return the local standard deviation of lightness in 7 x 7 cells, `1 1 h w`."""
    luma = torch.einsum("c,bchw->bhw", picture.new_tensor(LUMA), picture)[:, None]
    padded = functional.pad(luma, (3, 3, 3, 3), mode="replicate")
    mean, square = (functional.avg_pool2d(values, 7, 1) for values in (padded, padded * padded))
    return (square - mean * mean).clamp_min(0).sqrt()


def steepest(run: Any, delta: Tensor, change: Tensor) -> Tensor:
    """Steepest ascent under a perceptual norm: the step is scaled by what local contrast masks, and blurred.

    The norm's inverse: masking by local contrast, and contrast sensitivity as a blur, wider for colour than for
    lightness.
    """
    masked = change * (0.2 + contrast(run.clean) / 0.03).clamp_max(3)
    luma = torch.einsum("c,bchw->bhw", change.new_tensor(LUMA), masked)[:, None].expand_as(masked)
    moved = blur(luma, 0.7) + blur(masked - luma, 1.5)
    return (delta + run.fade * moved).clamp(-run.config.eta, run.config.eta)


def regional(run: Any, delta: Tensor, change: Tensor) -> Tensor:
    """Blur-guided (after BlurGuard, arXiv 2511.00143): smooth regions get a wide blur, textured ones a narrow one."""
    share = (contrast(run.clean) / 0.05).clamp(0, 1)
    moved = share * blur(change, 0.7) + (1 - share) * blur(change, 2.0)
    return (delta + run.fade * moved).clamp(-run.config.eta, run.config.eta)


def settings(**joint_settings: Any) -> dict[str, Any]:
    """Return overrides of the method."""
    return {"joint": joint_settings}


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[..., Tensor] | None]] = {
    "default": ({}, {}, None),
    "one position of the metric": ({"OFFSETS": budget.OFFSETS[:1]}, {}, None),
    "no bound on colours": ({}, settings(colour=100.0), None),
    "colours of areas from 8 cells": ({"CELLS": (8, 16, 32)}, {}, None),
    "colours of areas from 4 cells, two thirds": ({}, settings(colour=1.0), None),
    "small faces at their own size": ({"FACE_SIDE": 1}, {}, None),
    "one position, no bound on colours": ({"OFFSETS": budget.OFFSETS[:1]}, settings(colour=100.0), None),
    "one position, no blur of the steps": ({"OFFSETS": budget.OFFSETS[:1]}, settings(smoothing=0.0), None),
    "no blur of the steps": ({}, settings(smoothing=0.0), None),
    "wider blur, 1.5 cells": ({}, settings(smoothing=1.5), None),
    "perceptual norm": ({}, {}, steepest),
    "regional blur": ({}, {}, regional),
    "the metric in every step": ({"EVERY": 1}, {}, None),
    "the metric once": ({"EVERY": 10**9}, {}, None),
    "twice the steps": ({}, settings(steps=300), None),
}
"""Name to constants of the modules, settings, and the step that takes the place of `_Run.moved`."""


def measure(pixels: Pixels, variant: str, wanted: float) -> tuple[dict[str, float], Pixels]:
    """Protect one photo with one variant; return its figures and its pixels."""
    constants, overrides, moved = VARIANTS[variant]
    kept = [(module, name, getattr(module, name)) for module in MODULES for name in constants if hasattr(module, name)]
    plain = joint._Run.moved
    for module, name, _ in kept:
        setattr(module, name, constants[name])
    if moved:
        joint._Run.moved = moved  # type: ignore[method-assign]
    try:
        protector = Protector({"profile": "tiny", "overrides": {"visibility": wanted, **overrides}}, SEED, threads=1)
        start = time.process_time()
        (out,) = protect([PhotoIn(key="a", pixels=pixels)], [], protector.models, protector.config, SEED).photos
        spent = time.process_time() - start
    finally:
        joint._Run.moved = plain  # type: ignore[method-assign]
        for module, name, value in kept:
            setattr(module, name, value)
    shifted = visibility.ssimulacra2(pixels[ROWS:, COLUMNS:], out.pixels[ROWS:, COLUMNS:])
    optimised = [float(row["after"]) for row in out.similarity if row["optimised"]]
    held_out = [float(row["after"]) for row in out.similarity if not row["optimised"]]
    square = visibility.around_face(tuple(out.faces[0]["box"]), *pixels.shape[:2])
    faces = [visibility.shown(visibility.cut(values, square), face=True) for values in (pixels, out.pixels)]
    seen = visibility.butteraugli(*faces)
    colours = float(ColourShift(to_float(pixels))(to_float(out.pixels)))
    face = visibility.ssimulacra2_of_faces(pixels, out.pixels, [tuple(out.faces[0]["box"])])
    row = {"SSIMULACRA2": out.ssimulacra2, "face": face, "shifted": shifted}
    row |= {"Butteraugli": float("nan") if seen is None else seen, "FLIP": flip(*faces)}
    row |= {"colours": colours, "PSNR": out.psnr, "optimised": float(np.mean(optimised))}
    return row | {"held out": float(np.mean(held_out)), "seconds": spent}, out.pixels


def flip(a: Pixels, b: Pixels) -> float:
    """Return FLIP's mean error of two pictures, times 100; nan without the package flip-evaluator."""
    try:
        flip_evaluator = import_module("flip_evaluator")
    except ModuleNotFoundError:
        return float("nan")
    pictures = (values.astype(np.float32) / 255 for values in (a, b))
    return 100 * float(flip_evaluator.evaluate(*pictures, "LDR", applyMagma=False)[1])


def main() -> None:
    """Print a Markdown row for each variant: means over the photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--visibility", type=float, default=75.0)
    parser.add_argument("--variant", action="append", choices=list(VARIANTS))
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    photos = {path: np.array(Image.open(path).convert("RGB")) for path in given.photos}
    for number, variant in enumerate(given.variant or VARIANTS):
        rows = []
        for path, pixels in photos.items():
            row, out = measure(pixels, variant, given.visibility)
            rows.append(row)
            if given.save:
                given.save.mkdir(parents=True, exist_ok=True)
                Image.fromarray(out).save(given.save / f"{path.stem}-{variant.replace(' ', '-')}.png")
        if number == 0:
            print("| variant | " + " | ".join(rows[0]) + " |\n|---" * 1 + "|---" * len(rows[0]) + "|")
        means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
        print(f"| {variant} | " + " | ".join(f"{value:.2f}" for value in means.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
