"""Do transforms in the losses make a perturbation survive preprocessing? Both layers under the visibility budget.

One photo of each person is protected by the tiny profile in four ways: without transforms, with them in the identity
loss (`zero_shot.eot`), in the latent push, and in both; all end at the same lowest SSIMULACRA2. The stored photo goes
through each preprocessing. Columns: cosine to the clean photo of the optimised encoder, of the held-out one and of two
of other families, and the relative squared latent shift of the face's square from that of the preprocessed original.
The log has one JSON line a photo and condition; what is in the log is not run again.

    python -m tests.acceptance.transforms --assets DIR --log FILE [--photos 8]
    python -m tests.acceptance.transforms --log FILE --table
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch import Tensor

from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn
from dladiff.core.pixels import to_float
from dladiff.core.randomness import stream
from dladiff.core.tiles import face_square
from dladiff.core.transforms import draw_transform
from dladiff.core.views import View
from dladiff.diffusion.vae import BaseVae, Vae
from dladiff.evaluation.intervals import paired_change
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS
from dladiff.protect import protect
from dladiff.service import Protector, named_encoder
from tests.acceptance.dreambooth import read
from tests.acceptance.logged import command, options_of
from tests.acceptance.transfer import Evaluator, faces, rows

CONDITIONS = {
    "no transforms": (False, False),
    "identity": (True, False),
    "latents": (False, True),
    "both": (True, True),
}
"""Name to whether transforms are drawn in the identity loss and in the latent push."""
PREPROCESSED = ("none", "jpeg75", "blur", "half", "tv", "social")
COLUMNS = ("residual", "mobile", "mobilefacenet_casia", "mobileface_v1", "latent shift", "SSIMULACRA2", "seconds")
BASE = "no transforms"


class Measured(Evaluator):
    """The held-out encoders, and the optimised one."""

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self.residual = named_encoder("embedded:residual")

    def embed(self, rgb: Pixels) -> dict[str, np.ndarray] | None:
        found, points = super().embed(rgb), self.landmarks(rgb)
        if found is None or points is None:
            return None
        with torch.no_grad():
            crop = torch.from_numpy(self.crops.crop(rgb, points, "arcface112"))[None]
            return found | {"residual": self.residual(crop)[0].numpy()}


@contextmanager
def drawn_in_latents(on: bool) -> Iterator[None]:
    """Draw a transform of the views in every step of the latent push."""
    plain, generator = BaseVae.encode, stream(0, "transforms")

    def encode(vae: BaseVae, views: Tensor) -> Any:
        transform = draw_transform(generator, mirrored=False)
        return plain(vae, transform(views) if views.requires_grad else views)

    with mock.patch.object(BaseVae, "encode", encode) if on else mock.patch.object(BaseVae, "encode", plain):
        yield


def latent_shift(vae: Vae, before: Pixels, after: Pixels, view: View) -> float:
    """Return the squared shift of the latents of a view, over the variance of the first photo's."""
    with torch.no_grad():
        a, b = (vae.encode(view.read(to_float(pixels), 128)).mean for pixels in (before, after))
    centred = a - a.mean((1, 2, 3), keepdim=True)
    return float((a - b).square().mean() / centred.square().mean())


def measure(options: argparse.Namespace) -> None:
    """Run the photos and conditions that are not in the log."""
    torch.set_num_threads(1)
    evaluator = Measured(options.assets)
    known = {(row["photo"], row["condition"]) for row in rows(options.log)}
    for path in faces(options.assets, options.photos):
        photo = read(path)
        side = max(photo.shape[:2])
        if side > 512:
            photo = cv2.resize(photo, None, fx=512 / side, fy=512 / side, interpolation=cv2.INTER_AREA)
        name, clean = f"{path.parent.name}/{path.stem}", evaluator.embed(photo)
        for label, (identity, latents) in CONDITIONS.items():
            if (name, label) in known or clean is None:
                continue
            settings = {"profile": "tiny", "overrides": {"zero_shot": {"eot": identity}}}
            protector = Protector(settings, seed=0, threads=1)
            start = time.process_time()
            with drawn_in_latents(latents):
                (out,) = protect([PhotoIn(key="a", pixels=photo)], [], protector.models, protector.config, 0).photos
            spent = time.process_time() - start
            square = View.of("face", face_square(np.array(out.faces[0]["landmarks"])))
            for preprocessing in PREPROCESSED:
                change = PREPROCESSINGS[preprocessing].prepare()
                before, after = change(photo), change(out.pixels)
                found = evaluator.embed(after)
                row: dict[str, Any] = {"photo": name, "condition": label, "preprocessing": preprocessing}
                row["values"] = {e: float(found[e] @ clean[e]) for e in found} if found else {}
                row["values"]["latent shift"] = latent_shift(protector.models.vaes[0].vae, before, after, square)
                row["values"] |= {"SSIMULACRA2": min(out.ssimulacra2, out.ssimulacra2_face), "seconds": spent}
                with options.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")
            print(name, label, f"{spent:.0f} s", flush=True)


def table(found: list[dict[str, Any]]) -> str:
    """Return the means, and the paired changes from BASE with 95 % intervals over people."""
    values: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for row in found:
        values.setdefault((row["preprocessing"], row["condition"]), {})[row["photo"]] = row["values"]
    lines = [f"| preprocessing | condition | N | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for preprocessing in PREPROCESSED:
        kept = set.intersection(*(set(values.get((preprocessing, label), {})) for label in CONDITIONS))
        kept = {p for p in kept if all("mobile" in values[preprocessing, label][p] for label in CONDITIONS)}
        for label in CONDITIONS:
            cells = []
            for column in COLUMNS:
                one, base = ({p: [values[preprocessing, name][p][column]] for p in kept} for name in (label, BASE))
                mean, change = np.mean([v[0] for v in one.values()]), paired_change(one, base)
                digits = 0 if column in ("SSIMULACRA2", "seconds") else 3
                cell = f"{mean:.{digits}f}"
                if label != BASE and digits and change and change.low is not None:
                    cell += f" ({change.value:+.3f}, {change.low:+.3f} to {change.high:+.3f})"
                cells.append(cell)
            lines.append(f"| {preprocessing} | {label} | {len(kept)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table of a log."""
    parser = options_of(__doc__)
    parser.add_argument("--photos", type=int, default=8)
    command(parser, measure, lambda log: table(rows(log)))


if __name__ == "__main__":
    main()
