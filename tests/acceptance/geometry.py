"""What a displacement of the face adds, alone and with pixels, before and after what others do to photos.

Two photos of each of several people share one field. Each stored photo is evaluated as an attacker would use it: found
and aligned again by SCRFD, embedded by encoders that took no part, compared with the original. Only the first photo of
a person is measured, because pixels take most of the time. The log has one JSON line for each condition and person;
those in the log are not run again. Photos are saved beside it, to be looked at.

    python -m tests.acceptance.geometry --assets DIR --log FILE [--encoders packs | residual] [--seed 0] [NAME...]
    python -m tests.acceptance.geometry --log FILE --table
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn
from dladiff.core.pixels import to_float
from dladiff.core.randomness import stream
from dladiff.core.visibility import ssimulacra2
from dladiff.evaluation.intervals import Estimate, mean_over_people, paired_change
from dladiff.evaluation.preprocessing import jpeg, total_variation, unchanged
from dladiff.evaluation.purifiers import sdedit
from dladiff.layers import displacement, geometry
from dladiff.layers.stop_rule import FaceReader
from dladiff.protect import protect
from dladiff.service import Protector
from tests.acceptance.dreambooth import read
from tests.acceptance.transfer import Evaluator

PEOPLE = ("celebahq_103", "vggface2_n000050", "celebahq_1972", "metacloak_s1")
PHOTOS = 2
SIDE = 512
"""Longer side of the photos, px."""
JUDGES = ("mobilefacenet_casia", "mobileface_v1", "mobile")
ENCODERS = {"packs": ("mini_y1", "mini_relu6"), "residual": ("embedded:residual",)}
BLUR = 1.5


@dataclass(frozen=True)
class Condition:
    """What is done to the photos: a displacement, per cent of the distance between the eyes, and pixels or not."""

    largest: float
    pixels: bool = False
    constants: tuple[tuple[str, float], ...] = ()
    """Constants of `displacement` that differ."""
    afterwards: bool = False
    """Displace the photo that has the pixels of the condition `pixels`."""
    knows_pixels: bool = False
    """Optimise that field on the photo with these pixels."""


SOFT = (("STIFFNESS", 1.0),)
CONDITIONS = {
    "original": Condition(0),
    ".5 %": Condition(0.5),
    "1 %": Condition(1),
    "2 %": Condition(2),
    "2.8 % (1 px of the crop)": Condition(2.8),
    "1 %, no stiffness": Condition(1, constants=SOFT),
    "1 %, control points 4 px apart": Condition(1, constants=(("PITCH", 4.0),)),
    "2 %, no stiffness": Condition(2, constants=SOFT),
    "2.8 %, no stiffness": Condition(2.8, constants=SOFT),
    "pixels": Condition(0, pixels=True),
    ".5 % and pixels": Condition(0.5, pixels=True),
    "1 % and pixels": Condition(1, pixels=True),
    "2 % and pixels": Condition(2, pixels=True),
    "pixels, then 1 %": Condition(1, pixels=True, afterwards=True),
    "pixels, then 1 % optimised with them": Condition(1, pixels=True, afterwards=True, knows_pixels=True),
}


def blurred(photo: Pixels) -> Pixels:
    """Gaussian blur of BLUR px."""
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), BLUR, borderType=cv2.BORDER_REPLICATE), np.uint8)


def compressed(photo: Pixels) -> Pixels:
    """JPEG of quality 60."""
    return jpeg(photo, 60)


class Bench:
    """The photos, the networks, and what has been measured of the originals."""

    def __init__(self, assets: Path, encoders: str, seed: int) -> None:
        packs = [str(assets / "insightface_pack" / name) if "_" in name else name for name in ENCODERS[encoders]]
        self.protector = Protector({"profile": "tiny", "overrides": {"encoders": packs}}, seed, threads=1)
        self.seed, self.evaluator = seed, Evaluator(assets)
        self.after: dict[str, Callable[[Pixels], Pixels]] = {
            "as stored": unchanged,
            "blur": blurred,
            "JPEG 60": compressed,
            "total variation": total_variation,
            "redrawn": sdedit("", "cpu"),
        }
        self.people = {name: [self._read(p) for p in self._files(assets / "photos" / name)] for name in PEOPLE}

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        return sorted(p for p in folder.iterdir() if p.suffix in (".jpg", ".png"))[:PHOTOS]

    @staticmethod
    def _read(path: Path) -> Pixels:
        photo = np.asarray(read(path))
        scale = SIDE / max(photo.shape[:2])
        return photo if scale >= 1 else cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)

    def outputs(self, person: str, condition: Condition) -> list[tuple[Pixels, Pixels]]:
        """Return the stored photos, each with the displaced photo that it was made of."""
        photos, models, config = self.people[person], self.protector.models, self.protector.config
        networks = geometry.Networks(models.encoders, models.detector, models.device)
        found = [(pixels, models.detector.detect(pixels)) for pixels in photos]
        moved = photos
        if condition.largest:
            done = geometry.displace(found, found, networks, config.zero_shot, condition.largest, self.seed)
            moved = [pixels if one is None else one.pixels for pixels, one in zip(photos, done, strict=True)]
        if not condition.pixels:
            return [(moved[0], moved[0])]
        config = config.replaced(experimental=config.experimental.replaced(geometry=condition.largest))
        (out,) = protect([PhotoIn(key="a", pixels=photos[0])], photos, models, config, self.seed).photos
        return [(out.pixels, moved[0])]

    def after_pixels(self, person: str, condition: Condition, folder: Path) -> list[tuple[Pixels, Pixels]]:
        """Return the first photo with the pixels of the condition `pixels`, displaced afterwards.

        The field is optimised on the photo without these pixels, or with them, always away from the original.
        """
        original, models = self.people[person][0], self.protector.models
        stored = np.asarray(read(folder / f"{person}-0-pixels.png"))
        (face, *_) = models.detector.detect(original)
        networks = geometry.Networks(models.encoders, _Same(models.detector, original), models.device)
        clean, perturbed = (geometry.Portrait.of(pixels, face, networks) for pixels in (original, stored))
        seen = replace(clean, photo=perturbed.photo) if condition.knows_pixels else clean
        generator = stream(self.seed, "geometry")
        found = geometry.fit([seen], models.encoders, self.protector.config.zero_shot, condition.largest, generator)
        return [
            (displacement.displaced(stored, face, found).pixels, displacement.displaced(original, face, found).pixels)
        ]

    def rows(self, person: str, name: str, folder: Path) -> list[dict[str, Any]]:
        """Return what is measured of one person's photos in one condition."""
        condition, start = CONDITIONS[name], time.process_time()
        kept = {key: getattr(displacement, key) for key, _ in condition.constants}
        for key, value in condition.constants:
            setattr(displacement, key, value)
        try:
            made = (
                self.after_pixels(person, condition, folder)
                if condition.afterwards
                else self.outputs(person, condition)
            )
        finally:
            for key, value in kept.items():
                setattr(displacement, key, value)
        spent, rows = time.process_time() - start, []
        models = self.protector.models
        for i, (stored, base) in enumerate(made):
            original = self.people[person][i]
            Image.fromarray(stored).save(folder / f"{person}-{i}-{name.replace(' ', '_')}.png")
            clean = self.evaluator.embed(original)
            cosines: dict[str, Any] = {}
            for after, change in self.after.items():
                found = self.evaluator.embed(change(stored))
                cosines[after] = {n: float(found[n] @ clean[n]) if found else 0.0 for n in clean or {}}
            faces = models.detector.detect(original)
            reader = FaceReader(to_float(original), faces[0], [], models.encoders)
            optimised = reader.max_cosines_at(to_float(stored), reader.bases, [0])
            row = {"person": person, "condition": name, "cosines": cosines, "optimised": optimised}
            rows.append(row | {"seen": ssimulacra2(original, stored), "seen_moved": ssimulacra2(base, stored)})
        return [row | {"seconds": spent} for row in rows]


class _Same:
    """A detector whose passes find what they find in one photo, whatever they are given."""

    def __init__(self, detector: Any, photo: Pixels) -> None:
        self.name, self.sha256, self.licence = detector.name, detector.sha256, detector.licence
        self.detector, self.photo = detector, photo

    def detect(self, rgb: Pixels) -> Any:
        return self.detector.detect(self.photo)

    def passes(self, rgb: Pixels) -> Any:
        return self.detector.passes(self.photo)

    def passes_near(self, rgb: Pixels, faces: Any) -> Any:
        return self.detector.passes_near(self.photo, faces)


def table(log: Path) -> None:
    """Print the means over people, and the differences from pixels alone with their intervals."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    names = [name for name in CONDITIONS if any(row["condition"] == name for row in rows)]
    after = list(rows[0]["cosines"])

    def values(name: str, column: str) -> dict[str, list[float]]:
        own = [row for row in rows if row["condition"] == name]
        return {row["person"]: [float(np.mean([row["cosines"][column][j] for j in JUDGES]))] for row in own}

    print(f"| photos | N | optimised | {' | '.join(after)} | SSIMULACRA2 | beside the displaced photo |")
    print("|---" * (len(after) + 5) + "|")
    for name in names:
        own = [row for row in rows if row["condition"] == name]
        cells = [_text(mean_over_people(values(name, column)), interval=False) for column in after]
        seen = [f"{np.mean([row[key] for row in own]):.0f}" for key in ("seen", "seen_moved")]
        optimised = f"{np.mean([max(row['optimised']) for row in own]):.2f}"
        print(f"| {name} | {len(own)} | {optimised} | {' | '.join(cells)} | {' | '.join(seen)} |")
    for base in ("original", "pixels"):
        print(f"\n| less {base} | {' | '.join(after)} |\n" + "|---" * (len(after) + 1) + "|")
        for name in names:
            if name != base and CONDITIONS[name].pixels == (base == "pixels"):
                cells = [_text(paired_change(values(name, column), values(base, column))) for column in after]
                print(f"| {name} | {' | '.join(cells)} |")


def _text(found: Estimate | None, interval: bool = True) -> str:
    if found is None:
        return "-"
    if not interval:
        return f"{found.value:.2f}"
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})" if found.low is not None else "-"


def main() -> None:
    """Measure what the log lacks, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="*", help=", ".join(CONDITIONS))
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--encoders", choices=list(ENCODERS), default="packs")
    parser.add_argument("--people", type=int, default=len(PEOPLE))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        table(given.log)
        return
    torch.set_num_threads(1)
    bench = Bench(given.assets, given.encoders, given.seed)
    known = [json.loads(line) for line in given.log.read_text().splitlines()] if given.log.exists() else []
    done = {(row["person"], row["condition"]) for row in known}
    for name in given.conditions or CONDITIONS:
        for person in PEOPLE[: given.people]:
            if (person, name) not in done:
                with given.log.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in bench.rows(person, name, given.log.parent))


if __name__ == "__main__":
    main()
