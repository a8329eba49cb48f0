"""Visibility of a change: SSIMULACRA2 and Butteraugli of a protected photo against its original, from stored bytes.

Photos are h x w x 3 RGB bytes, compared at the size at which a screen shows them. Imports no torch, because the driver
uses this module.
"""

import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack

import numpy as np
from PIL import Image
from ssimulacra2 import compute_ssimulacra2

from dladiff.core.arrays import Pixels

SCREEN = 1080
"""Longer side of compared pictures, px: the size at which a screen shows a photo. Larger pictures are scaled down."""
SMALLEST = 8
"""Shortest side of compared pictures, px: below it both measures compare nothing. Edge pixels are repeated."""
COMPARED_MARGIN = 1.25
"""Side of the compared square around a face over the longer side of its box: the face with its hair, little else.

A wider square averages over background that no layer changes: the same picture scored 48 with 1 and 75 with 1.5.
"""
FACE_SIDE = 256
"""Shorter side to which smaller squares around faces are enlarged before they are compared, px.

Viewers enlarge a small face: at its own size one with plain lines on its cheeks scored 75, enlarged twice 54. And below
225 px SSIMULACRA2 leaves out its coarsest scale and gives the weights of the others to other terms.
"""
IDENTICAL = 100.0
"""SSIMULACRA2 of equal pictures."""
PROGRAM = "butteraugli_main"
PROGRAM_S = 300
"""Seconds until the program is ended; a picture of SCREEN px takes about one."""

FaceBox = tuple[float, ...]
"""A face: x0, y0, x1, y1, px."""
Rectangle = tuple[int, int, int, int]
"""Left, top, right and bottom edge, whole px; right and bottom lie outside."""


def ssimulacra2(a: Pixels, b: Pixels, face: bool = False) -> float:
    """Return how little the change from `a` to `b` is seen: SSIMULACRA2 (Sneyers 2022) as the package computes it.

    100: identical, 90: not distinguishable side by side, 70: high quality, 50: medium, 30: low; there is no lower
    limit. Both photos have the same shape. `face`: they are squares around a face; small ones are enlarged. Memory: 512
    bytes a pixel of the compared pictures, at most 0.6 GB.
    """
    if np.array_equal(a, b):
        return IDENTICAL
    return float(compute_ssimulacra2(*(_bitmap(shown(pixels, face)) for pixels in (a, b))))


def ssimulacra2_of_faces(a: Pixels, b: Pixels, boxes: Iterable[FaceBox]) -> float:
    """Return the lowest SSIMULACRA2 of the squares around the faces; NaN without a face."""
    height, width = a.shape[:2]
    squares = dict.fromkeys(around_face(box, height, width) for box in boxes)
    return min((ssimulacra2(cut(a, square), cut(b, square), face=True) for square in squares), default=float("nan"))


def ssimulacra2_of_both(a: Pixels, b: Pixels, boxes: Iterable[FaceBox]) -> tuple[float, float]:
    """Return `ssimulacra2` and `ssimulacra2_of_faces`; a face whose square is the whole photo takes no further time."""
    height, width = a.shape[:2]
    whole, squares = ssimulacra2(a, b), {box: around_face(box, height, width) for box in boxes}
    same = (0, 0, width, height) if min(height, width) >= FACE_SIDE else None
    parts = [box for box, square in squares.items() if square != same]
    scores = [ssimulacra2_of_faces(a, b, parts)] * bool(parts) + [whole] * (len(parts) < len(squares))
    return whole, min(scores, default=float("nan"))


def around_face(box: FaceBox, height: int, width: int) -> Rectangle:
    """Return the square around a face, centred, moved into the photo and cut to it.

    Its side is COMPARED_MARGIN times the longer side of the face's box, and it is at least SMALLEST. `height`, `width`:
    of the photo, px.
    """
    x0, y0, x1, y1 = box
    side = max(SMALLEST, round(COMPARED_MARGIN * max(x1 - x0, y1 - y0)))
    across, down = min(side, width), min(side, height)
    left = int(np.clip(round((x0 + x1 - across) / 2), 0, width - across))
    top = int(np.clip(round((y0 + y1 - down) / 2), 0, height - down))
    return left, top, left + across, top + down


def cut(pixels: Pixels, rectangle: Rectangle) -> Pixels:
    """Return the pixels of a rectangle."""
    left, top, right, bottom = rectangle
    return pixels[top:bottom, left:right]


def butteraugli(a: Pixels, b: Pixels) -> float | None:
    """Return the Butteraugli distance (3-norm, at 80 nits) of two photos; None without the program on PATH.

    0: identical, about 1: just noticed. The program is `butteraugli_main` of libjxl. It reads both pictures from
    memory that belongs to this process: no file is written. Linux only; None elsewhere. Raises RuntimeError when the
    program fails.
    """
    program = shutil.which(PROGRAM)
    if program is None or not hasattr(os, "memfd_create"):
        return None
    if np.array_equal(a, b):
        return 0.0
    with ExitStack() as stack:
        files = [stack.enter_context(os.fdopen(os.memfd_create("photo"), "wb")) for _ in range(2)]
        for file, pixels in zip(files, (a, b), strict=True):
            Image.fromarray(shown(pixels)).save(file, "ppm")
            file.flush()
        numbers = [file.fileno() for file in files]
        command = [program, *(f"/proc/self/fd/{number}" for number in numbers)]
        try:
            done = subprocess.run(command, pass_fds=numbers, capture_output=True, text=True, timeout=PROGRAM_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{program} cannot compare two photos: {error}; install another libjxl") from error
    found = re.search(r"^3-norm: ([0-9.]+)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise RuntimeError(f"{program} gives no 3-norm (exit code {done.returncode}); install libjxl 0.7 or later")
    return float(found[1])


def shown(pixels: Pixels, face: bool = False) -> Pixels:
    """Return a picture as it is compared: scaled down to SCREEN, a face up to FACE_SIDE; sides at least SMALLEST."""
    height, width = pixels.shape[:2]
    scale = min(SCREEN / max(height, width), max(1.0, FACE_SIDE / min(height, width)) if face else 1.0)
    if scale != 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        kernel = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
        pixels = np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, kernel))
    missing = [(0, max(0, SMALLEST - side)) for side in pixels.shape[:2]]
    return np.ascontiguousarray(np.pad(pixels, [*missing, (0, 0)], mode="edge") if np.any(missing) else pixels)


def _bitmap(pixels: Pixels) -> io.BytesIO:
    """Return a picture as a BMP file in memory, which the package opens: lossless, and written in 5 ms at SCREEN px."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "bmp")
    file.seek(0)
    return file
