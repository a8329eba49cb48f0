"""Layer 1 on photos of every shape: how far each of the attacker's views moves in latent space.

A portrait of 1024 x 1024 is cut to each aspect ratio, both ways, and scaled to each longer side. Layer 1 alone protects
it in `region: photo` with the tiny model. The latent shift of a view is ||E(x + delta) - E(x)|| / ||E(x)||, of pixels
cut from the stored photo by Pillow. It is compared with the shift of the same view protected as a square photo of its
own. What the log holds is not done again.

    python -m tests.acceptance.shapes --assets DIR --log FILE [--sides 512 1024 2048 4032] [--visibility 75]
    python -m tests.acceptance.shapes --log FILE --table
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn
from dladiff.core.pixels import to_float
from dladiff.core.views import View, attacker_views
from dladiff.protect import protect
from dladiff.service import Protector

RATIOS = {"1:1": (1, 1), "4:5": (4, 5), "3:4": (3, 4), "2:3": (2, 3), "9:16": (9, 16)}
OVERRIDES = {"layers": "finetuning", "region": "photo"}
SEED = 0


def shaped(photo: Pixels, ratio: tuple[int, int], tall: bool, side: int) -> Pixels:
    """Return the middle part of a square photo with an aspect ratio, scaled to a longer side."""
    length = photo.shape[0]
    short = round(length * ratio[0] / ratio[1])
    width, height = (short, length) if tall else (length, short)
    left, top = (length - width) // 2, (length - height) // 2
    part = Image.fromarray(photo).crop((left, top, left + width, top + height))
    small = round(side * ratio[0] / ratio[1])
    return np.asarray(part.resize((small, side) if tall else (side, small), Image.Resampling.LANCZOS))


def shifts(protector: Protector, before: Pixels, after: Pixels, views: list[View]) -> dict[str, float]:
    """Return the latent shift of each view, cut and resized by Pillow."""
    resolution, (weighted,) = protector.config.resolution, protector.models.vaes
    found = {}
    for view in views:
        box = (view.x, view.y, view.x + view.width, view.y + view.height)
        latents = []
        for pixels in (before, after):
            image = Image.fromarray(pixels).crop(box).resize((resolution, resolution), Image.Resampling.BILINEAR)
            with torch.no_grad():
                latents.append(weighted.vae.encode(to_float(np.asarray(image))).mean)
        found[view.name] = float((latents[1] - latents[0]).norm() / latents[0].norm())
    return found


def measure(protector: Protector, photo: Pixels, views: list[View]) -> dict[str, Any]:
    """Protect one photo by layer 1; return shifts by view, seconds, and the peak memory of this process so far."""
    start = time.process_time()
    (out,) = protect([PhotoIn(key="photo", pixels=photo)], [], protector.models, protector.config, SEED).photos
    spent = time.process_time() - start
    return {
        "shift": shifts(protector, photo, out.pixels, views),
        "retained": out.retained,
        "psnr": out.psnr,
        "seconds": spent,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def alone(photo: Pixels, view: View) -> Pixels:
    """Return a view as a square photo of its own; the whole photo is stretched to its shorter side."""
    part = Image.fromarray(photo).crop((view.x, view.y, view.x + view.width, view.y + view.height))
    side = min(view.width, view.height)
    return np.array(part.resize((side, side), Image.Resampling.BILINEAR))


def cases(given: argparse.Namespace) -> list[tuple[str, str, bool, int]]:
    """Return (photo, ratio, tall, longer side) of every case."""
    photos = sorted((given.assets / "photos" / "celebahq_1972").glob("*.*g"))[: given.photos]
    return [
        (str(photo), ratio, tall, side)
        for photo in photos
        for side in given.sides
        for ratio in RATIOS
        for tall in ((True,) if ratio == "1:1" else (True, False))
    ]


def run(given: argparse.Namespace) -> None:
    """Measure every case that the log lacks."""
    torch.set_num_threads(1)
    done = {tuple(json.loads(line)["case"]) for line in given.log.open()} if given.log.exists() else set()
    overrides = {**OVERRIDES, "visibility": given.visibility}
    protector = Protector({"profile": "tiny", "overrides": overrides}, seed=SEED, threads=1)
    for name, ratio, tall, side in cases(given):
        if (case := (Path(name).name, ratio, tall, side)) in done:
            continue
        photo = shaped(np.asarray(Image.open(name).convert("RGB")), RATIOS[ratio], tall, side)
        faces = protector.models.detector.detect(photo)
        views = attacker_views(photo.shape[0], photo.shape[1], [face.box for face in faces[:1]], 16)
        row: dict[str, Any] = {"case": case, "photo": measure(protector, photo, views), "alone": {}}
        for view in views:
            own = alone(photo, view)
            middle = attacker_views(own.shape[0], own.shape[1], [], 1)
            row["alone"][view.name] = measure(protector, own, middle) if ratio != "1:1" else row["photo"]
        with given.log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(case, {v: round(share, 2) for v, share in shares(row).items()}, flush=True)


def shares(row: dict[str, Any]) -> dict[str, float]:
    """Return each view's shift over that of the view as a photo of its own."""
    return {view: shift / row["alone"][view]["shift"]["middle"] for view, shift in row["photo"]["shift"].items()}


def table(log: Path) -> None:
    """Print a Markdown row for each shape and side: shares of the shift of the view alone, means over the photos."""
    print(
        "| shape | longer side | N | middle | face | whole | other squares | retained | time over the square's | MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in map(json.loads, log.open()):
        _, ratio, tall, side = row["case"]
        shape = ratio if tall else ":".join(reversed(ratio.split(":")))
        groups.setdefault((shape, side), []).append(row)
    for (shape, side), rows in groups.items():
        cells = []
        for kind in ("middle", "face", "whole", "square"):
            found = [share for row in rows for view, share in shares(row).items() if view.startswith(kind)]
            cells.append(f"{np.mean(found):.2f}" if found else "-")
        kept = np.mean([row["photo"]["retained"] for row in rows])
        times = np.mean([row["photo"]["seconds"] / row["alone"]["middle"]["seconds"] for row in rows])
        peak = max(row["photo"]["peak_mib"] for row in rows)
        print(f"| {shape} | {side} | {len(rows)} | {' | '.join(cells)} | {kept:.2f} | {times:.1f} | {peak:.0f} |")


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=2)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048, 4032])
    parser.add_argument("--visibility", type=float, default=0.0, help="0: Algorithm 1; else both layers' budget")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        run(given)
    table(given.log)


if __name__ == "__main__":
    main()
