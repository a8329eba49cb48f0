"""Transfer of layer 2 to held-out encoders at equal PSNR.

Layer 2 alone runs a fixed number of steps, without a stop rule, on one face of each of several people. Every
perturbation is then scaled so that the face box of the rounded photo has the same PSNR. The protected photo is
evaluated as an attacker would use it: detected and aligned again by SCRFD, embedded, compared with the clean photo.
Options are chosen on the encoders CHOOSING and reported on REPORTED; none of them is optimised against. The log has one
JSON line per photo and condition; conditions in the log are not run again.

    python -m tests.acceptance.transfer --assets DIR --log FILE [--photos 8]
    python -m tests.acceptance.transfer --log FILE --table
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import to_float, to_uint8
from dladiff.core.quality import psnr
from dladiff.core.randomness import stream
from dladiff.evaluation.intervals import paired_change
from dladiff.faces.detect import Face, ScrfdDetector
from dladiff.faces.encoder import IdentityEncoder, encoder_from_pack, load_encoder
from dladiff.faces.onnx_file import load_model
from dladiff.faces.onnx_import import OnnxNetwork
from dladiff.layers.stop_rule import FaceReader
from dladiff.layers.zero_shot import Box, pasted, perturb_face
from dladiff.service import named_encoder
from dladiff.settings.schema import ZeroShotConfig
from tests.acceptance.dreambooth import FaceEmbedder, read
from tests.acceptance.logged import command, options_of

CHOOSING = ("mobilefacenet_tf", "mobile")
REPORTED = ("mobilefacenet_casia", "mobileface_v1")
PSNR = 33.0  # dB in the face box: a bound of 8 grey levels, two thirds of the pixels at it
FIXED = ZeroShotConfig(eta=8 / 255, step_size=1.5e-3, max_steps=60, draws=2, threshold=-1, margin=0)
"""No cosine is below -1, so nothing stops and nothing is floored; the steps can cross the bound three times."""
PAIR = ("y1", "relu6")
BASE = "two encoders"


@dataclass(frozen=True)
class Condition:
    """What differs from BASE."""

    encoders: tuple[str, ...] = PAIR
    changes: dict[str, Any] = field(default_factory=dict)
    inner: bool = False
    """Compare an inner layer too: feature-level loss (Ganeshan et al. 2019, in spirit)."""


WIDE = {"linear_noise": 0.1, "shift_noise": 4.0}
CONDITIONS: dict[str, Condition] = {
    BASE: Condition(),
    "aligned space": Condition(changes={"space": "aligned"}),
    "jitter x 2": Condition(changes=WIDE),
    "eot": Condition(changes={"eot": True}),
    "inner layer too": Condition(inner=True),
    "another pair": Condition(encoders=("y1", "residual")),
    "three encoders": Condition(encoders=(*PAIR, "residual")),
    "three encoders, eot, jitter x 2": Condition(encoders=(*PAIR, "residual"), changes={"eot": True, **WIDE}),
}


class Evaluator(FaceEmbedder):
    """The held-out encoders, each with its own crop."""

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        names = [n for n in (*CHOOSING, *REPORTED) if n != "mobile"]
        self.nets = {n: self.graphnet.load(str(assets / "encoders" / f"{n}.safetensors")) for n in names}
        self.mobile = named_encoder("embedded:mobile")

    def embed(self, rgb: Pixels) -> dict[str, np.ndarray] | None:
        points = self.landmarks(rgb)
        if points is None:
            return None
        with torch.no_grad():
            arcface = torch.from_numpy(self.crops.crop(rgb, points, "arcface112"))[None]
            found = {"mobile": self.mobile(arcface)[0].numpy()}
            for name, (net, pre) in self.nets.items():
                crop = torch.from_numpy(self.crops.crop(rgb, points, pre["crop"]))[None]
                found[name] = self.graphnet.embed(net, pre, crop)[0].numpy()
        return found


class WithInner(nn.Module):
    """An encoder whose cosine is the mean of its own and that of the activations halfway through its network."""

    def __init__(self, encoder: IdentityEncoder, path: Path) -> None:
        super().__init__()
        self.encoder, self.cut = encoder, encoder.cut
        model = load_model(path)
        convolutions = [i for i, node in enumerate(model.graph.node) if node.op_type == "Conv"]
        last = convolutions[len(convolutions) // 2]
        name = model.graph.node[last].output[0]
        del model.graph.node[last + 1 :]
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(name, 1, None))
        self.inner = OnnxNetwork(model, path)

    def forward(self, crops: Tensor) -> Tensor:
        inner = functional.normalize(self.inner(self.encoder.scaled(crops)).flatten(1), dim=1)
        return torch.cat([self.encoder(crops), inner], 1) / 2**0.5


class Bench:
    """Detector, optimised encoders and evaluator, loaded once."""

    def __init__(self, assets: Path) -> None:
        packs = {name: assets / "insightface_pack" / f"mini_{name}" for name in PAIR}
        paths = {name: encoder_from_pack(pack) for name, pack in packs.items()}
        self.encoders: dict[str, Any] = {name: load_encoder(path, name) for name, path in paths.items()}
        self.inner = {name: WithInner(self.encoders[name], path) for name, path in paths.items()}
        self.encoders["residual"] = named_encoder("embedded:residual")
        self.detector = ScrfdDetector(assets / "detectors" / "det_500m.onnx")
        self.evaluator = Evaluator(assets)

    def noise(self, case: "Case") -> Tensor:
        """Return random signs in the box; `at_psnr` scales them."""
        box = case.box
        coins = torch.rand((1, 3, box.y1 - box.y0, box.x1 - box.x0), generator=stream(0, case.name))
        return torch.where(coins < 0.5, FIXED.eta, -FIXED.eta)

    def protect(self, case: "Case", condition: Condition) -> tuple[Tensor, float]:
        """Return the perturbation in the face's box and the processor time, s."""
        x = to_float(case.photo)
        encoders: list[Any] = [(self.inner if condition.inner else self.encoders)[name] for name in condition.encoders]
        reader = FaceReader(x, case.face, case.passes, encoders)
        config = FIXED.replaced(**condition.changes)
        start = time.process_time()
        patch, _, _ = perturb_face(
            x, case.box, reader.bases, reader.targets, encoders, config, stream(0, "transfer"), lambda _: [1.0]
        )
        return patch, time.process_time() - start

    def white_box(self, case: "Case", out: Pixels) -> dict[str, float]:
        """Return the cosines of the optimised encoders with the clean photo's alignment."""
        reader = FaceReader(to_float(case.photo), case.face, [], list(self.encoders.values()))
        return dict(zip(self.encoders, reader.max_cosines_at(to_float(out), reader.bases, [0]), strict=True))


@dataclass(frozen=True)
class Case:
    """A photo, its largest face, the detector's passes at several sizes, and the evaluator's clean embeddings."""

    name: str
    photo: Pixels
    face: Face
    passes: list[list[Face]]
    clean: dict[str, np.ndarray]

    @property
    def box(self) -> Box:
        return Box.of(self.face, *self.photo.shape[:2])

    @classmethod
    def of(cls, path: Path, bench: Bench) -> "Case | None":
        """Read a photo and downscale it to at most 512 px a side; None if either detector finds no face."""
        photo = read(path)
        side = max(photo.shape[:2])
        if side > 512:
            photo = cv2.resize(photo, None, fx=512 / side, fy=512 / side, interpolation=cv2.INTER_AREA)
        clean, found = bench.evaluator.embed(photo), bench.detector.detect(photo)
        if clean is None or not found:
            return None
        return cls(f"{path.parent.name}/{path.stem}", photo, found[0], bench.detector.passes(photo), clean)


def at_psnr(photo: Pixels, patch: Tensor, box: Box) -> tuple[Pixels, float]:
    """Scale the perturbation until the rounded box has PSNR dB; return the photo and the scale."""
    mask = np.zeros(photo.shape[:2], dtype=bool)
    mask[box.y0 : box.y1, box.x0 : box.x1] = True
    low, high = 0.0, 4.0
    for _ in range(20):
        scale = (low + high) / 2
        out = to_uint8(pasted(to_float(photo), patch * scale, box))
        low, high = (scale, high) if psnr(photo, out, mask) > PSNR else (low, scale)
    return out, scale


def faces(assets: Path, count: int) -> list[Path]:
    """Return one photo of each person: first the four people with several photos, then those with one."""
    folder = assets / "photos"
    first = [sorted(p for p in d.iterdir() if p.suffix != ".md")[0] for d in sorted(folder.iterdir()) if d.is_dir()]
    several = [p for p in first if p.parent.name != "distractors"]
    return [*several, *sorted((folder / "distractors").iterdir())][:count]


def measure(options: argparse.Namespace) -> None:
    """Run the photos and conditions that are not in the log."""
    torch.set_num_threads(1)
    bench = Bench(options.assets)
    known = {(r["photo"], r["condition"]) for r in rows(options.log)}
    for path in faces(options.assets, options.photos):
        name = f"{path.parent.name}/{path.stem}"
        left = [label for label in ("noise", *CONDITIONS) if (name, label) not in known]
        case = Case.of(path, bench) if left else None
        for label in left:
            assert case is not None
            patch, seconds = (bench.noise(case), 0.0) if label == "noise" else bench.protect(case, CONDITIONS[label])
            out, scale = at_psnr(case.photo, patch, case.box)
            found = bench.evaluator.embed(out)
            row = {"photo": name, "condition": label, "seconds": round(seconds, 2), "scale": round(scale, 3)}
            row["cosine"] = {n: float(found[n] @ case.clean[n]) for n in found} if found else None
            row["optimised"] = bench.white_box(case, out)
            print(json.dumps(row), flush=True)
            with options.log.open("a") as log:
                log.write(json.dumps(row) + "\n")


def rows(log: Path) -> list[dict[str, Any]]:
    """Return the rows of the log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return a table of each encoder's mean cosine and the paired change from BASE, with a 95 % interval over people.

    Only photos with every condition in the log and with a detected face count.
    """
    own: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found:
        if row["cosine"] is not None:
            own.setdefault(row["condition"], {})[row["photo"]] = row
    kept = set.intersection(*({*own.get(c, {})} for c in ("noise", *CONDITIONS)))
    encoders = (*CHOOSING, *REPORTED)
    lines = [
        f"| condition | N | processor time | {' | '.join(encoders)} | change on {' and '.join(REPORTED)} (95 %) |",
        "|---" * (len(encoders) + 4) + "|",
    ]

    def reported(label: str) -> dict[str, list[float]]:
        return {p: [own[label][p]["cosine"][e] for e in REPORTED] for p in kept}

    usual = np.mean([own[BASE][p]["seconds"] for p in kept])
    for label in ("noise", *CONDITIONS):
        means = [f"{np.mean([own[label][p]['cosine'][e] for p in kept]):.3f}" for e in encoders]
        change = paired_change(reported(label), reported(BASE))
        spread = f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})" if change and change.low else "-"
        cost = np.mean([own[label][p]["seconds"] for p in kept]) / usual
        clock = "-" if label == "noise" else f"{cost:.1f}"
        lines.append(f"| {label} | {len(kept)} | {clock} | {' | '.join(means)} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table of a log."""
    parser = options_of(__doc__)
    parser.add_argument("--photos", type=int, default=8)
    command(parser, measure, lambda log: table(rows(log)))


if __name__ == "__main__":
    main()
