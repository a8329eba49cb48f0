"""How visible stored photos are when they are looked at enlarged: `python -m tests.acceptance.enlarged OUTPUT`.

OUTPUT is a folder that `dladiff protect` wrote; the script reads the manifest and the files and shares no code with the
product. The square around the largest face (1.25 times its box) and the whole photo are enlarged (bicubic) and scored
by the package ssimulacra2, and by butteraugli_main where it is installed. Means over the photos, and the lowest.

    python -m tests.acceptance.enlarged OUTPUT [--by 1 2 3]
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import ssimulacra2
from PIL import Image

SQUARE = 1.25
"""Side of the square around a face, in sides of its box."""


def local(uri: str) -> Path:
    """Return the path of a file's address."""
    return Path(uri.removeprefix("file://"))


def around(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """Return the square around a box, within the image."""
    side = SQUARE * max(box[2] - box[0], box[3] - box[1])
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left, top = max(0, x - side / 2), max(0, y - side / 2)
    right, bottom = min(image.width, x + side / 2), min(image.height, y + side / 2)
    return image.crop((round(left), round(top), round(right), round(bottom)))


def scores(before: Image.Image, after: Image.Image, by: int) -> tuple[float, float]:
    """Return SSIMULACRA2 and Butteraugli's 3-norm of two images, enlarged; nan without butteraugli_main."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("a.png", "b.png")]
        for file, image in zip(files, (before, after), strict=True):
            image.resize((by * image.width, by * image.height), Image.Resampling.BICUBIC).save(file)
        seen = float("nan")
        if shutil.which("butteraugli_main"):
            done = subprocess.run(["butteraugli_main", *files], capture_output=True, text=True, check=True)
            seen = float(done.stdout.split()[-1])
        return float(ssimulacra2.compute_ssimulacra2(*files)), seen


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--by", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    rows = pq.read_table(options.output / "manifest" / "photos.parquet").to_pylist()
    rows = [row for row in rows if row["output_uri"] and row["faces"]]
    print("| enlarged | photos | SSIMULACRA2 face | lowest | Butteraugli face | SSIMULACRA2 whole | lowest |")
    print("|---" * 7 + "|")
    for by in options.by:
        faces, wholes = [], []
        for row in rows:
            pair = [Image.open(local(row[name])).convert("RGB") for name in ("source_uri", "output_uri")]
            box = max((face["box"] for face in row["faces"]), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
            faces.append(scores(around(pair[0], box), around(pair[1], box), by))
            wholes.append(scores(pair[0], pair[1], by)[0])
        seen, butteraugli = (np.array(column) for column in zip(*faces, strict=True))
        print(
            f"| {by} | {len(rows)} | {seen.mean():.1f} | {seen.min():.1f} | {butteraugli.mean():.2f} | "
            f"{np.mean(wholes):.1f} | {min(wholes):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
