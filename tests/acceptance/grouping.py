"""How often an identity's photos are wrongly taken for different people, and how often strangers are found.

One person: every set of photos of each person in `photos/`, and the held-out people of `faces/lfw128.tar`. Strangers:
random sets, one crop of each of several people of the tar, and random sets of `photos/distractors`. Photos go through
CenterFace as in a run; the tar's crops are aligned already. Crops of the tar are of real web photos: some are labelled
wrongly, which no encoder can tell.

    python -m tests.acceptance.grouping --assets DIR [--encoder embedded:residual]...
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dladiff.core.grouping import MIN_FACES, different_people
from dladiff.core.pixels import to_float
from dladiff.faces.detect import CenterFaceDetector
from dladiff.faces.encoder import IdentityEncoder
from dladiff.faces.largest import largest_faces
from dladiff.service import named_encoder
from dladiff.settings.schema import method_config
from dladiff.training.data import align, load_crops

Faces = NDArray[np.float32]
MAX_SETS = 2000  # sets of one size; all of them where there are fewer
SIZES = (3, 4, 5, 8, 12)
SETS = ("vggface2_n000050", "celebahq_103", "celebahq_1972", "metacloak_s1")


def photos(folder: Path, encoders: Sequence[IdentityEncoder]) -> Faces:
    """Return the embeddings of the largest face of each photo of a folder, as a run computes them."""
    files = sorted(path for path in folder.iterdir() if path.suffix in {".jpg", ".png"})
    pixels = (cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files)
    return np.stack(largest_faces(pixels, CenterFaceDetector(), encoders, torch.device("cpu")))


def crops(assets: Path, encoders: Sequence[IdentityEncoder]) -> tuple[Faces, list[str], int]:
    """Return embeddings and people of the tar: all crops of the held-out people first, then one of each other."""
    found, matrix = load_crops(assets)
    held = [crop for crop in found if crop.held_out]
    others = list({crop.person: crop for crop in found if not crop.held_out}.values())[:MAX_SETS]
    rows = []
    for crop in [*held, *others]:
        with torch.no_grad():
            aligned = to_float(align(crop.pixels(), matrix))
            own = [encoder(aligned)[0].numpy() for encoder in encoders]
            rows.append(np.concatenate(own) / np.sqrt(np.float32(len(own))))
    return np.stack(rows), [crop.person for crop in [*held, *others]], len(held)


def sets(faces: Faces, size: int, generator: np.random.Generator) -> Iterator[Faces]:
    """Yield the sets of `size` faces, or MAX_SETS random ones."""
    every = list(combinations(range(len(faces)), size)) if len(faces) <= 12 else []
    if every:
        for i in generator.permutation(len(every))[:MAX_SETS]:
            yield faces[list(every[i])]
        return
    for _ in range(MAX_SETS):
        yield faces[generator.choice(len(faces), size, replace=False)]


def flagged(groups: Sequence[Faces], size: int, generator: np.random.Generator) -> str:
    """Return how many sets of each group are taken for different people."""
    results = [bool(different_people(list(s))) for g in groups if len(g) >= size for s in sets(g, size, generator)]
    return f"{sum(results)} of {len(results)} ({sum(results) / len(results):.1%})" if results else "-"


def main() -> None:
    """Print one row a size of set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--encoder", action="append", help="default: those of the profile tiny")
    options = parser.parse_args()
    names = options.encoder or list(method_config("tiny", None, {}).encoders)
    encoder, generator = [named_encoder(name) for name in names], np.random.default_rng(0)
    own = [photos(options.assets / "photos" / name, encoder) for name in SETS]
    strangers = photos(options.assets / "photos" / "distractors", encoder)
    faces, people, held = crops(options.assets, encoder)
    persons = np.array(people)
    of_people = [faces[:held][persons[:held] == name] for name in sorted(set(people[:held]))]
    apart = faces[sorted({name: i for i, name in enumerate(people)}.values())]
    print(f"{', '.join(names)}; sets of fewer than {MIN_FACES} faces are never flagged")
    print("| faces | one person, photos | one person, crops | strangers, photos | strangers, crops |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        cells = [flagged(groups, size, generator) for groups in (own, of_people, [strangers], [apart])]
        print(f"| {size} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
