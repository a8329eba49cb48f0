"""Pairs of clean and protected photos in two folders, with a folder a person, and some of the people held out."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

from dladiff.core.arrays import Pixels
from dladiff.errors import DladiffError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
DIGEST = re.compile(r"\.[0-9a-f]{12}$")
"""What `dladiff protect` adds to the stem of a protected photo."""
MAX_BYTES = 4 * 2**30
"""Largest sum of the pixels of all pairs, which stay in memory."""


class PairsError(DladiffError):
    """The folders hold no usable pairs."""


@dataclass(frozen=True)
class Pair:
    """One photo before and after protection, h x w x 3 each, and its person."""

    person: str
    clean: Pixels
    protected: Pixels


def load_pairs(clean: Path, protected: Path) -> tuple[list[Pair], dict[str, int]]:
    """Return the pairs by person and name, and how many protected photos were left out, by reason.

    A protected photo `person/.../stem[.digest].ext` belongs to the clean photo of the same folder and stem, or of the
    same person and stem; of two, to the one in `set_B`. A person's name may be escaped, as `dladiff protect` does.
    Raises PairsError: a folder is missing, nothing pairs, or the pixels need too much memory.
    """
    originals = _by_name(clean)
    pairs, left_out, size = [], {"no clean photo": 0, "several clean photos": 0, "another size": 0, "unreadable": 0}, 0
    for path in _photos(protected):
        names = [unquote(name) for name in _names(path, protected)]
        keys = [(name, stem) for name in names for stem in (DIGEST.sub("", path.stem), path.stem)]
        found = next((originals[key] for key in keys if key in originals), [])
        found = [p for p in found if "set_B" in p.parts] or found
        if len(found) != 1:
            left_out["several clean photos" if found else "no clean photo"] += 1
            continue
        try:
            before, after = _pixels(found[0]), _pixels(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            left_out["unreadable"] += 1
            continue
        if before.shape != after.shape:
            left_out["another size"] += 1
            continue
        pairs.append(Pair(names[-1], before, after))
        size += before.nbytes + after.nbytes
        if size > MAX_BYTES:
            raise PairsError(f"the photos need more than {MAX_BYTES // 2**30} GB of memory; take fewer or smaller ones")
    reasons = {reason: count for reason, count in left_out.items() if count}
    if not pairs:
        raise PairsError(
            f"no photo of {protected} belongs to one of {clean} ({reasons or 'it holds none'}): both need a folder a "
            "person, with equal names of the photos"
        )
    return pairs, reasons


def split(pairs: list[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs for training, and those of about `share` of the people, held out.

    The SHA-256 of a person's name decides, so that further photos or another order change nothing. Raises PairsError:
    fewer than two people.
    """
    people = sorted({pair.person for pair in pairs}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(people) < 2:
        raise PairsError("all photos show one person; held-out people need at least two")
    held_out = set(people[: min(len(people) - 1, max(1, round(share * len(people))))])
    return [p for p in pairs if p.person not in held_out], [p for p in pairs if p.person in held_out]


def _by_name(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Return the photos of a folder by each folder around them and their stem."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in _photos(folder):
        for name in _names(path, folder):
            found.setdefault((name, path.stem), []).append(path)
    return found


def _photos(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise PairsError(f"no folder {folder}: name the folders of clean and of protected photos")
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.suffix.lower() in SUFFIXES and path.is_file() and not any(part.startswith(".") for part in inside):
            yield path


def _names(path: Path, folder: Path) -> list[str]:
    """Return the folders around a photo, joined, the outermost (a person) last; without one its stem."""
    inside = path.relative_to(folder).parts[:-1]
    return ["/".join(inside[:n]) for n in range(len(inside), 0, -1)] or [DIGEST.sub("", path.stem)]


def _pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image) or image
        return np.array(turned.convert("RGB"), np.uint8)
