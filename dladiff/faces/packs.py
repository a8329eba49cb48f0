"""Where weights lie that are named without a path: InsightFace packs by name. Nothing here imports torch."""

import contextlib
import os
from pathlib import Path

from dladiff.errors import ModelError

VARIABLE = "DLADIFF_FACES"
"""Environment variable that names a folder of packs."""
CLIP = "clip:"
"""Prefix of a CLIP vision tower's folder."""


def find(name: str) -> Path | None:
    """Return the file or folder that an encoder's or detector's name means on this machine, or None.

    A path is itself, `clip:FOLDER` its folder. A bare name (`buffalo_l`) that is nothing here is a pack in the folder
    that DLADIFF_FACES names, or in InsightFace's own.
    """
    if not name:
        return None
    path = Path(name.removeprefix(CLIP))
    if path.exists():
        return _pack(path) or path
    if not _bare(name):
        return None
    return next((place for folder in _folders() if (place := _pack(folder / name)) is not None), None)


def located(name: str) -> Path:
    """Return `find`'s answer. Raises ModelError that says where it was looked for and how to get it."""
    found = find(name)
    if found is not None:
        return found
    if name.startswith(CLIP):
        raise ModelError(f"no CLIP vision tower at {name.removeprefix(CLIP)}: name a folder saved by transformers")
    if not _bare(name):
        raise ModelError(f"nothing at {name}: name an ONNX file, an InsightFace pack folder, or a pack (buffalo_l)")
    places = ", ".join(str(folder / name) for folder in _folders())
    raise ModelError(
        f"no InsightFace pack {name} in {places}: unpack {name}.zip from the releases of "
        f"github.com/deepinsight/insightface (model zoo; non-commercial use) there, or set {VARIABLE} to the folder "
        "that holds it; a run downloads nothing"
    )


def _bare(name: str) -> bool:
    """Tell whether a name can be a pack's: no path, no prefix, no file's ending, nothing hidden."""
    return bool(name) and not set(name) & set("/\\:") and not name.startswith(".") and not name.endswith(".onnx")


def _folders() -> list[Path]:
    own = os.environ.get(VARIABLE)
    folders = [Path(own)] if own else []
    with contextlib.suppress(RuntimeError):  # a user of a container may have no home
        folders.append(Path.home() / ".insightface" / "models")
    return folders


def _pack(folder: Path) -> Path | None:
    """Return the folder that holds the models: antelopev2's zip makes another of the same name inside."""
    for place in (folder, folder / folder.name):
        if any(place.glob("*.onnx")):
            return place
    return None
