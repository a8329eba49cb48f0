"""Layer 1 schedules of the tiny profile: protection against time, evaluated by DreamBooth on 128 px faces.

For each person, layer 1 alone protects four photos with each schedule. DreamBooth trains on them, and its pictures are
compared with other photos of the person. The rows clean and noise (random signs, the PSNR of 16 epochs) are baselines.
The log has one JSON line per person, seed and condition; conditions in the log are not run again.

    python -m tests.acceptance.schedules --assets DIR --log FILE [--seeds 0 1] [--people 8] [--only CONDITION ...]
    python -m tests.acceptance.schedules --log FILE --table [--only CONDITION ...]
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from dladiff.core.ball import around
from dladiff.core.pgd import gradient_of, pgd
from dladiff.core.pixels import to_float, to_uint8
from dladiff.core.quality import psnr
from dladiff.core.randomness import stream
from dladiff.diffusion.surrogate import Surrogate
from dladiff.evaluation.intervals import paired_change
from dladiff.layers import finetuning as finetuning_layer
from dladiff.settings.schema import FinetuningConfig, method_config
from dladiff.training.data import load_crops
from tests.acceptance.dreambooth import ENCODERS, FaceEmbedder, dreambooth, face_crop, generate, noise_like, read, score

BUNDLE = Path(__file__).parents[2] / "dladiff" / "profiles" / "tiny" / "bundle"
TINY = method_config("tiny", None, {}).finetuning
LONG = TINY.replaced(iter_opt=16)
SCHEDULES: dict[str, FinetuningConfig] = {
    "16 epochs": LONG,
    "8 epochs, the profile's": TINY,
    "16 epochs, attention stage alone": LONG.replaced(iter_2=0),
    "16 epochs, denoising stage alone": LONG.replaced(iter_1=0),
    "16 epochs, no dynamic training": LONG.replaced(iter_3=0),
}
FIRST = "16 epochs"
DIRECT = "direct ascent on the latents"
"""Without a surrogate: gradient ascent on the distance to the clean latents; steps and PSNR of 8 epochs."""
CONDITIONS = ("clean", "noise", *SCHEDULES, DIRECT)
PROTECTED = 4  # photos of each person
REFERENCES = 16  # other photos of a person, at most
Face = NDArray[np.uint8]


def people(assets: Path, embedder: FaceEmbedder, count: int) -> Iterator[tuple[str, list[Face], list[Face]]]:
    """Yield name, faces to protect and other faces (all 128 px) of two photo sets, then of LFW's held-out people."""
    for name in ("celebahq_103", "vggface2_n000050"):
        photos = [read(p) for p in sorted((assets / "photos" / name).iterdir()) if p.suffix in (".jpg", ".png")]
        faces = [face_crop(photo, points) for photo in photos if (points := embedder.landmarks(photo)) is not None]
        yield name, faces[:PROTECTED], faces[PROTECTED:]
    crops, _ = load_crops(assets)
    own: dict[str, list[Face]] = {}
    for crop in crops:
        if crop.held_out:
            own.setdefault(crop.person, []).append(crop.pixels())
    largest = sorted(own, key=lambda name: (-len(own[name]), name))
    for name in largest[: count - 2]:
        yield name, own[name][:PROTECTED], own[name][PROTECTED:]


def protect(surrogate: Surrogate, faces: list[Face], config: FinetuningConfig, seed: int) -> tuple[list[Face], float]:
    """Protect whole faces by layer 1; return them and the seconds of one identity."""
    start = time.perf_counter()
    x = torch.cat([to_float(face) for face in faces])
    static = finetuning_layer.static_surrogate(surrogate, x, config, stream(seed, "static"))
    streams = [stream(seed, "layer1", str(i)) for i in range(len(faces))]
    delta = finetuning_layer.perturb(surrogate, static, x, config, streams)
    return [to_uint8(one[None]) for one in (x + delta).clamp(0, 1)], time.perf_counter() - start


def direct_ascent(surrogate: Surrogate, faces: list[Face], seed: int) -> tuple[list[Face], float]:
    """Maximise the distance of the latents' means to the clean ones within 6/255; return the faces and the seconds."""
    start = time.perf_counter()
    x = torch.cat([to_float(face) for face in faces])
    clean = surrogate.encode_fixed(x, len(x)).mean
    delta = pgd(
        x,
        (torch.rand(x.shape, generator=stream(seed)) - 0.5) * 2 / 255,  # at the clean photo the gradient is zero
        gradient_of(lambda point: (surrogate.encode(point).mean - clean).square().sum()),
        projection=around(x, 6 / 255),
        step_size=TINY.step_size,
        steps=TINY.iter_opt * (TINY.iter_1 + TINY.iter_2),
    )
    return [to_uint8(one[None]) for one in (x + delta).clamp(0, 1)], time.perf_counter() - start


def measure(options: argparse.Namespace) -> None:
    """Run the conditions that are not in the log."""
    torch.set_num_threads(options.threads)
    embedder = FaceEmbedder(options.assets)
    surrogate = Surrogate("embedded", torch.device("cpu"))
    pipe = StableDiffusionPipeline.from_pretrained(
        BUNDLE, safety_checker=None, torch_dtype=torch.float32, local_files_only=True
    )
    known = {(r["person"], r["seed"], r["condition"]) for r in rows(options.log)}
    for seed in options.seeds:
        for person, faces, others in people(options.assets, embedder, options.people):
            embedded = [e for e in map(embedder.embed, others[:REFERENCES]) if e is not None]
            reference = {n: np.sum([e[n] for e in embedded], 0) for n in ENCODERS}
            reference = {n: v / np.linalg.norm(v) for n, v in reference.items()}
            protected: list[Face] | None = None
            for condition in sorted(options.only, key=lambda name: name != FIRST):  # noise is as strong as this one
                if (person, seed, condition) in known:
                    continue
                used, seconds = faces, 0.0
                if condition in SCHEDULES:
                    used, seconds = protect(surrogate, faces, SCHEDULES[condition], seed)
                    protected = used if condition == FIRST else protected
                elif condition == DIRECT:
                    used, seconds = direct_ascent(surrogate, faces, seed)
                elif condition == "noise":
                    protected = protected or protect(surrogate, faces, LONG, seed)[0]
                    used = [noise_like(f, p, i) for i, (f, p) in enumerate(zip(faces, protected, strict=True))]
                found: dict[str, Any] = {"person": person, "seed": seed, "condition": condition}
                found |= {"seconds": round(seconds, 1), "references": len(embedded)}
                quality = [psnr(a, b) for a, b in zip(faces, used, strict=True)]
                found |= {"psnr": None if condition == "clean" else float(np.mean(quality))}
                unet = dreambooth(pipe, used, seed, options.steps, 5e-4)
                found |= score(embedder, generate(pipe, unet, options.samples), reference)
                print(json.dumps(found), flush=True)
                with options.log.open("a") as log:
                    log.write(json.dumps(found) + "\n")


def rows(log: Path) -> list[dict[str, Any]]:
    """Return the rows of the log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(found: list[dict[str, Any]], conditions: list[str]) -> str:
    """Return a table of ISM (all) by condition: the mean over people and seeds, and its paired change from clean.

    Only people with every condition in the log count, so that all rows are means over the same people.
    """
    shown = {"clean", *conditions}
    clean = {(r["person"], r["seed"]): r for r in found if r["condition"] == "clean"}
    for key in list(clean):
        if {r["condition"] for r in found if (r["person"], r["seed"]) == key} < shown:
            del clean[key]
    lines = ["| condition | N | seconds | PSNR dB | ISM tf | ISM y1 | change of ISM tf from clean, 95 % | FDR |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for condition in CONDITIONS:
        own = [r for r in found if r["condition"] == condition and (r["person"], r["seed"]) in clean]
        if condition not in shown or not own:
            continue
        name = f"ism_all_{ENCODERS[0]}"
        usual = [clean[r["person"], r["seed"]] for r in own]
        change = paired_change(_by_person(own, name), _by_person(usual, name))
        assert change is not None
        quality = "-" if condition == "clean" else f"{np.mean([r['psnr'] for r in own]):.1f}"
        ism = [f"{np.mean([r[f'ism_all_{e}'] for r in own]):.3f}" for e in ENCODERS]
        interval = "" if change.low is None else f" ({change.low:+.3f} to {change.high:+.3f})"
        spread = f"{change.value:+.3f}{interval}"
        seconds, fdr = np.mean([r["seconds"] for r in own]), np.mean([r["fdr"] for r in own])
        cells = (condition, len(own), f"{seconds:.0f}", quality, *ism, spread, f"{fdr:.2f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _by_person(found: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    return {name: [r[key] for r in found if r["person"] == name] for name in {r["person"] for r in found}}


def main() -> None:
    """Measure, or print the table of a log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table of the log; measure nothing")
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), help="conditions")
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300, help="of DreamBooth")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.table:
        print(table(rows(options.log), options.only))
    elif options.assets is None:
        parser.error("--assets is needed to measure")
    else:
        measure(options)


if __name__ == "__main__":
    main()
