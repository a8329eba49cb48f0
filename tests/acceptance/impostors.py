"""Photos for `dladiff calibrate`: LFW's people that no bundled network was trained on, a folder a person.

    python -m tests.acceptance.impostors --assets DIR --out DIR
    dladiff calibrate --people DIR --evaluator embedded:mobile --evaluator embedded:residual --out FILE

`tests.acceptance.thresholds` makes the thresholds that ship with the package.
"""

import argparse
from collections import Counter
from pathlib import Path

from dladiff.training.data import load_crops


def write(assets: Path, out: Path) -> Counter[str]:
    """Write each held-out person's crops, 128 x 128 px, as they are stored; return the number of photos by person."""
    counts: Counter[str] = Counter()
    for crop in load_crops(assets)[0]:
        if crop.held_out:
            place = out / crop.person / f"{counts[crop.person]:02d}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(crop.data)
            counts[crop.person] += 1
    return counts


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    counts = write(options.assets, options.out)
    print(f"{counts.total()} photos of {len(counts)} people")


if __name__ == "__main__":
    main()
