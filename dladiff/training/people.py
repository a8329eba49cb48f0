"""Write photos of people as folders, for pairs of a remover: `python -m dladiff.training.people --help`.

The people are those of LFW that are not held out, so the people of `make evaluate` are not among them.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from dladiff.training.data import Crop, load_crops


def chosen(crops: list[Crop], people: int, photos: int) -> dict[str, list[Crop]]:
    """Return `people` people with at least `photos` crops each, evenly spaced by name, and their first crops."""
    own: dict[str, list[Crop]] = {}
    for crop in crops:
        if not crop.held_out:
            own.setdefault(crop.person, []).append(crop)
    names = sorted(name for name, found in own.items() if len(found) >= photos)
    rows = np.linspace(0, len(names) - 1, min(people, len(names))).astype(int)
    return {names[i]: own[names[i]][:photos] for i in rows}


def main() -> None:
    """Write the folders; print their number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--assets", type=Path, required=True, help="folder with faces/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--photos", type=int, default=2, help="of each person")
    options = parser.parse_args()
    found = chosen(load_crops(options.assets)[0], options.people, options.photos)
    for name, crops in found.items():
        for i, crop in enumerate(crops):
            place = options.out / name / f"{i:02d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                cv2.imwrite(str(place), cv2.cvtColor(crop.pixels(), cv2.COLOR_RGB2BGR))
    print(len(found))


if __name__ == "__main__":
    main()
