"""`python docs/figures/make_before_after.py PHOTOS PROTECTED`: make before-after.webp from an output of the demo.

PHOTOS is the folder that `python -m pipeline.demo` wrote, PROTECTED the output of `python -m pipeline protect`. Three
panels at the photo's own size: the original, the stored protected photo, and 128 + AMPLIFICATION x (protected -
original), clipped to 0 to 255. The file is lossless: compression would alter the change.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

IDENTITY = "astronaut"
"""The one person of the demo whose portrait is in the public domain (NASA, from scikit-image)."""
AMPLIFICATION = 7
"""As in `dladiff report`."""
GAP, LABEL, TEXT = 8, 30, 17
"""Pixels between panels, of the strip with the labels, and of the text."""


def figure(original: Image.Image, protected: Image.Image) -> Image.Image:
    """Return the three panels of two RGB images of one size, each under its label."""
    change = np.asarray(protected, np.int16) - np.asarray(original, np.int16)
    amplified = Image.fromarray(np.clip(128 + AMPLIFICATION * change, 0, 255).astype(np.uint8))
    panels = {"original": original, "protected": protected, f"change, amplified {AMPLIFICATION} times": amplified}
    width, height = original.size
    canvas = Image.new("RGB", (len(panels) * (width + GAP) - GAP, LABEL + height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=TEXT)
    for place, (label, panel) in enumerate(panels.items()):
        left = place * (width + GAP)
        draw.text((left + width / 2, LABEL / 2), label, fill="black", font=font, anchor="mm")
        canvas.paste(panel, (left, LABEL))
    return canvas


def main(arguments: list[str]) -> int:
    """Write the figure beside this file; exit code 2 on bad usage."""
    if len(arguments) != 2:
        print("usage: python docs/figures/make_before_after.py PHOTOS PROTECTED", file=sys.stderr)
        return 2
    photos, output = map(Path, arguments)
    rows = pq.read_table(output / "manifest" / "photos.parquet").to_pylist()
    (row,) = (row for row in rows if row["identity"] == IDENTITY)
    with Image.open(photos / IDENTITY / "portrait.png") as before, Image.open(output / row["output_key"]) as after:
        made = figure(before.convert("RGB"), after.convert("RGB"))
    made.save(Path(__file__).with_name("before-after.webp"), lossless=True, method=6)
    print(f"PSNR {row['psnr']:.1f} dB, in the face {row['psnr_face']:.1f} dB; at most {row['linf'] * 255:.0f}/255")
    for one in row["similarity"]:
        print(f"{one['encoder']}: cosine {one['before']:.2f} after layer 1, {one['after']:.2f} as stored")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
