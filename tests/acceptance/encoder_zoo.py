"""Transfer of layer 2 to held-out encoders under the visibility budget: more encoders, and changes of the loss.

Both layers protect one photo each of several people at one SSIMULACRA2, as `dladiff protect` does. The protected
photo is evaluated as an attacker would use it: detected and aligned again by SCRFD, embedded, compared with the clean
photo. Conditions are chosen on CHOOSING and reported on REPORTED; none of these is optimised, and none taught an
optimised one. The log has one JSON line per photo, seed and condition; what is in the log is not run again. `--zoo` is
a folder of NAME.onnx: students of `dladiff.training.distil`, and for the conditions with y1 and relu6 the recognition
models of the test packs `mini_y1` and `mini_relu6`, full-size networks. relu6 taught `mobile`.

    python -m tests.acceptance.encoder_zoo --assets DIR --zoo DIR --log FILE [--condition NAME]... [--people 8]
    python -m tests.acceptance.encoder_zoo --log FILE --table
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn
from dladiff.evaluation.intervals import paired_change
from dladiff.layers import joint, parts
from dladiff.layers.budget import Budget
from dladiff.protect import protect
from dladiff.service import Protector, named_encoder
from dladiff.settings.merge import merge
from tests.acceptance.changed_loss import Changed, Loss, ScoredOnce
from tests.acceptance.dreambooth import FaceEmbedder, read
from tests.acceptance.evaluation_people import held_out
from tests.acceptance.logged import command, options_of

CHOOSING = ("mobile",)
REPORTED = ("mobilefacenet_casia", "mobileface_v1")
ANOTHER = "mobilefacenet_y1"
"""Reported in a column of its own, because two conditions optimise it."""
VISIBILITY = 75.0
SIDE = 512
"""Longer photos are downscaled to it, pixels."""


@dataclass(frozen=True)
class Condition:
    """Encoders beside `residual`, settings and the loss."""

    more: tuple[str, ...] = ()
    alone: bool = False
    """Whether they take the place of `residual`."""
    loss: Loss = field(default_factory=Loss)
    settings: dict[str, Any] = field(default_factory=dict)
    hinge: float = joint.HINGE_WEIGHTS[2]
    """Highest weight of the identity loss."""
    once: bool = False
    """Score a small photo in the loop only as its face is scored."""


TODAY = "residual"
"""The former default, with which the others are compared unless `--base` names another."""
DEFAULT = "+ mobilefacenet, 1 a step, 2 draws (the default)"
EMBEDDED = ("mobile", "mobilefacenet")
ONE, TWO = {"joint": {"encoders_per_step": 1}}, {"joint": {"encoders_per_step": 1, "draws": 2}}
"""One encoder a step; and two alignments."""
ZOO = ("irse", "vgg", "vit", "shuffle")
WIDE = {"zero_shot": {"linear_noise": 0.1, "shift_noise": 4.0}}
MEF = Loss(radius=3.0, inner=1.5)
CONDITIONS: dict[str, Condition] = {
    TODAY: Condition(),
    "before: small photos scored once": Condition(once=True),
    "threshold -1": Condition(settings={"zero_shot": {"threshold": -1.0}}),
    "identity weight at most 3": Condition(hinge=3.0),
    "identity weight 1": Condition(hinge=1.0),
    "jitter x 2": Condition(settings=WIDE),
    "warps": Condition(loss=Loss(warp=2.5)),
    "cut-outs": Condition(loss=Loss(cut=28)),
    "neighbourhood (MEF)": Condition(loss=MEF),
    "noise of 3": Condition(loss=Loss(radius=3.0)),
    "noise of 6": Condition(loss=Loss(radius=6.0)),
    "MEF of 6": Condition(loss=Loss(radius=6.0, inner=3.0)),
    "MEF, identity weight 1": Condition(loss=MEF, hinge=1.0),
    "MEF of 6, identity weight 1": Condition(loss=Loss(radius=6.0, inner=3.0), hinge=1.0),
    "MEF, + y1, 1 a step": Condition(more=("y1",), loss=MEF, settings=ONE),
    "twice the steps": Condition(settings={"joint": {"steps": 300}}),
    **{f"+ {name}": Condition(more=(name,)) for name in ZOO},
    "+ mobile": Condition(more=("mobile",)),
    "+ mobile, 1 a step": Condition(more=("mobile",), settings=ONE),
    "+ y1": Condition(more=("y1",)),
    "+ y1, 1 a step": Condition(more=("y1",), settings=ONE),
    "mobilefacenet alone": Condition(more=("mobilefacenet",), alone=True),
    "+ mobilefacenet": Condition(more=("mobilefacenet",)),
    "+ mobilefacenet, 1 a step": Condition(more=("mobilefacenet",), settings=ONE),
    DEFAULT: Condition(more=("mobilefacenet",), settings=TWO),
    "the default + relu6": Condition(more=("mobilefacenet", "relu6"), settings=TWO),
    "mobilefacenet and relu6, 1 a step, 2 draws": Condition(more=("mobilefacenet", "relu6"), alone=True, settings=TWO),
    "the default, neighbourhood (MEF)": Condition(more=("mobilefacenet",), loss=MEF, settings=TWO),
    "the default, warps": Condition(more=("mobilefacenet",), loss=Loss(warp=2.5), settings=TWO),
    "the default, cut-outs": Condition(more=("mobilefacenet",), loss=Loss(cut=28), settings=TWO),
    "+ all": Condition(more=ZOO),
    "+ all, 2 a step": Condition(more=ZOO, settings={"joint": {"encoders_per_step": 2}}),
    **{f"MEF, + {name}": Condition(more=(name,), loss=MEF) for name in ZOO},
    "+ all, warps, cut-outs": Condition(more=ZOO, loss=Loss(warp=2.5, cut=28)),
    "+ all, MEF": Condition(more=ZOO, loss=MEF),
}


class Evaluator(FaceEmbedder):
    """The held-out encoders, each with its own crop."""

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self.nets = {n: self.graphnet.load(str(assets / "encoders" / f"{n}.safetensors")) for n in (*REPORTED, ANOTHER)}
        self.own = {n: named_encoder(f"embedded:{n}") for n in ("mobile", "residual")}

    def embed(self, rgb: Pixels) -> dict[str, np.ndarray] | None:
        points = self.landmarks(rgb)
        if points is None:
            return None
        with torch.no_grad():
            arcface = torch.from_numpy(self.crops.crop(rgb, points, "arcface112"))[None]
            found = {name: encoder(arcface)[0].numpy() for name, encoder in self.own.items()}
            for name, (net, pre) in self.nets.items():
                crop = torch.from_numpy(self.crops.crop(rgb, points, pre["crop"]))[None]
                found[name] = self.graphnet.embed(net, pre, crop)[0].numpy()
        return found


def people(assets: Path, count: int) -> Iterator[tuple[str, Pixels]]:
    """Yield each person's name and one photo: three 128 px crops of LFW's held-out people to each portrait."""
    folder = assets / "photos"
    portraits = []
    for name in ("celebahq_103", "vggface2_n000050", "celebahq_1972", "metacloak_s1"):
        pixels = read(sorted(p for p in (folder / name).iterdir() if p.suffix in {".jpg", ".png"})[0])
        if (longer := max(pixels.shape[:2])) > SIDE:
            pixels = cv2.resize(pixels, None, fx=SIDE / longer, fy=SIDE / longer, interpolation=cv2.INTER_AREA)
        portraits.append((name, pixels))
    small = [(name, crops[0].pixels()) for name, crops in held_out(assets, 12).items()]
    left = iter(small)
    ordered = [one for portrait in portraits for one in (next(left), portrait, next(left), next(left))]
    yield from ordered[:count]


@cache
def protector(label: str, zoo: Path, seed: int) -> Protector:
    """Return the product with a condition's encoders and settings."""
    condition = CONDITIONS[label]
    more = [f"embedded:{name}" if name in EMBEDDED else str(zoo / f"{name}.onnx") for name in condition.more]
    encoders = more if condition.alone else ["embedded:residual", *more]
    overrides: dict[str, Any] = {"visibility": VISIBILITY, "encoders": encoders, "held_out": []}
    overrides["joint"] = {"encoders_per_step": 0, "draws": 4}
    merge(overrides, condition.settings)
    return Protector({"profile": "tiny", "overrides": overrides}, seed, threads=1)


def run(label: str, pixels: Pixels, zoo: Path, seed: int) -> tuple[Any, float]:
    """Protect a photo; return what the product returns for it, and the processor time, s."""
    own, condition = protector(label, zoo, seed), CONDITIONS[label]
    plain, weights, small = joint._Run, joint.HINGE_WEIGHTS, parts.SMALL
    joint.Budget = ScoredOnce if condition.once else Budget  # type: ignore[attr-defined,misc]
    Changed.loss = condition.loss
    joint._Run = Changed  # type: ignore[misc]
    joint.HINGE_WEIGHTS = (*weights[:2], condition.hinge)
    parts.SMALL = 0 if condition.once else small
    try:
        start = time.process_time()
        (out,) = protect([PhotoIn(key="a", pixels=pixels)], [], own.models, own.config, seed).photos
        return out, time.process_time() - start
    finally:
        joint._Run = plain  # type: ignore[misc]
        joint.HINGE_WEIGHTS, parts.SMALL = weights, small
        joint.Budget = Budget  # type: ignore[attr-defined,misc]


def measure(options: argparse.Namespace) -> None:
    """Run the photos and conditions that are not in the log."""
    torch.set_num_threads(1)
    evaluator = Evaluator(options.assets)
    known = {(r["person"], r["seed"], r["condition"]) for r in rows(options.log)}
    for seed in range(options.seeds):
        for person, pixels in people(options.assets, options.people):
            clean = evaluator.embed(pixels)
            for label in options.condition or CONDITIONS:
                if clean is None or (person, seed, label) in known:
                    continue
                out, seconds = run(label, pixels, options.zoo, seed)
                found = evaluator.embed(out.pixels)
                row = {"person": person, "seed": seed, "condition": label, "seconds": round(seconds, 2)}
                row |= {"ssimulacra2": out.ssimulacra2, "face": out.ssimulacra2_face, "psnr": out.psnr}
                row["optimised"] = {s["encoder"]: s["after"] for s in out.similarity if s["optimised"]}
                row["cosine"] = {n: float(found[n] @ clean[n]) for n in found} if found else None
                print(json.dumps(row), flush=True)
                with options.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                if options.save:
                    options.save.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(out.pixels).save(options.save / f"{person}-{label}-{seed}.png")


def rows(log: Path) -> list[dict[str, Any]]:
    """Return the rows of the log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(found: Sequence[dict[str, Any]], base: str = TODAY) -> str:
    """Return each condition's means, and the paired change from `base` with a 95 % interval over people.

    A condition counts on the people and seeds that it shares with `base`, whose time and cosines count on the same.
    """
    own: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for row in found:
        if row["cosine"] is not None:
            own.setdefault(row["condition"], {})[row["person"], row["seed"]] = row
    columns = ("residual", *CHOOSING, *REPORTED, ANOTHER)
    lines = [
        f"| condition | people | {' | '.join(columns)} | SSIMULACRA2, lowest | time | change on mobile (95 %) "
        "| change on casia, v1 and y1 (95 %) |",
        "|---" * (len(columns) + 6) + "|",
    ]
    for label in (label for label in CONDITIONS if label in own):
        kept = sorted(own[label].keys() & own[base].keys())
        mine, usual = ([own[name][k] for k in kept] for name in (label, base))
        means = [f"{np.mean([r['cosine'][e] for r in mine]):.3f}" for e in columns]
        score = np.mean([min(r["ssimulacra2"], r["face"] or r["ssimulacra2"]) for r in mine])
        cost = sum(r["seconds"] for r in mine) / sum(r["seconds"] for r in usual)
        changes = []
        for encoders in (CHOOSING, (*REPORTED, ANOTHER)):
            change = paired_change(*(_by_person(part, encoders) for part in (mine, usual)))
            spread = f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})" if change and change.low else "-"
            changes.append(spread)
        count = len({person for person, _ in kept})
        lines.append(f"| {label} | {count} | {' | '.join(means)} | {score:.1f} | {cost:.1f} | {' | '.join(changes)} |")
    return "\n".join(lines)


def _by_person(part: Sequence[dict[str, Any]], encoders: Sequence[str]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for row in part:
        values.setdefault(row["person"], []).extend(row["cosine"][e] for e in encoders)
    return values


def main() -> None:
    """Measure, or print the table of a log."""
    parser = options_of(__doc__)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="folder with the other encoders, NAME.onnx")
    parser.add_argument("--condition", action="append", choices=list(CONDITIONS))
    parser.add_argument("--people", type=int, default=8, help="at most 16")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--save", type=Path, help="folder for the protected photos")
    parser.add_argument("--base", choices=list(CONDITIONS), default=TODAY, help="what the table compares with")
    base = parser.parse_args().base
    command(parser, measure, lambda log: table(rows(log), base))


if __name__ == "__main__":
    main()
