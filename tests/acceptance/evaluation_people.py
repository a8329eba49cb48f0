"""Photos for `make evaluate`: people that no bundled network was trained on, as folders of set_A and set_B.

Set B (four photos) is protected, and the attacker has it. The evaluator compares with set A, and the static surrogate
may train on it. LFW's held-out people give 128 px crops; two photo sets give portraits of 512 px. Existing files stay
unchanged.

    python -m tests.acceptance.evaluation_people --assets DIR --out DIR [--people 8] [--sets 2]
"""

import argparse
from pathlib import Path

import cv2

from dladiff.training.data import Crop, load_crops

SETS = ("celebahq_103", "vggface2_n000050")
PROTECTED, OTHERS = 4, 8


def held_out(assets: Path, count: int) -> dict[str, list[Crop]]:
    """Return the `count` held-out people of LFW with the most photos, and their photos."""
    own: dict[str, list[Crop]] = {}
    for crop in load_crops(assets)[0]:
        if crop.held_out:
            own.setdefault(crop.person, []).append(crop)
    largest = sorted(own, key=lambda name: (-len(own[name]), name))[:count]
    return {name: own[name][: PROTECTED + OTHERS] for name in largest}


def write(assets: Path, out: Path, people: int, sets: int) -> list[str]:
    """Write the folders; return the names."""
    for name, crops in held_out(assets, people).items():
        for i, crop in enumerate(crops):
            place = out / name / ("set_B" if i < PROTECTED else "set_A") / f"{i:02d}.png"
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(place), cv2.cvtColor(crop.pixels(), cv2.COLOR_RGB2BGR))
    for name in SETS[:sets]:
        for file in sorted((assets / "photos" / name).glob("set_?_*")):
            _, letter, rest = file.name.split("_", 2)
            place = out / name / f"set_{letter}" / rest
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read_bytes())
    return sorted(folder.name for folder in out.iterdir())


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=8, help="of LFW")
    parser.add_argument("--sets", type=int, default=len(SETS), help="photo sets")
    options = parser.parse_args()
    print(", ".join(write(options.assets, options.out, options.people, options.sets)))


if __name__ == "__main__":
    main()
