"""Lookup of face networks by name or path, among them InsightFace packs. Imports no torch: the driver uses it."""

import contextlib
import os
from pathlib import Path

from dladiff.errors import ModelError

VARIABLE = "DLADIFF_FACES"
"""Environment variable with a folder of packs."""
CLIP = "clip:"
"""Prefix of a CLIP vision tower's folder."""


def find(name: str) -> Path | None:
    """Return the file or folder of an encoder or detector on this machine, or None.

    `name`: a path, `clip:FOLDER`, or the name of a pack (`buffalo_l`), which is looked up in the folder DLADIFF_FACES
    and then in InsightFace's own. An existing path takes precedence over a pack.
    """
    if not name:
        return None
    path = Path(name.removeprefix(CLIP))
    if path.exists():
        return pack(path) or path
    if not _bare(name):
        return None
    return next((found for folder in folders() if (found := pack(folder / name)) is not None), None)


def located(name: str) -> Path:
    """Return the result of `find`. Raises ModelError: not found; names the searched folders and how to get it."""
    found = find(name)
    if found is not None:
        return found
    if name.startswith(CLIP):
        raise ModelError(f"no CLIP vision tower at {name.removeprefix(CLIP)}: name a folder saved by transformers")
    if not _bare(name):
        raise ModelError(f"nothing at {name}: name an ONNX file, an InsightFace pack folder, or a pack (buffalo_l)")
    searched = ", ".join(str(folder / name) for folder in folders())
    raise ModelError(
        f"no InsightFace pack {name} in {searched}: unpack {name}.zip from the releases of "
        f"github.com/deepinsight/insightface (model zoo; non-commercial use) there, or set {VARIABLE} to the folder "
        "that holds it; a run downloads nothing"
    )


def _bare(name: str) -> bool:
    """Return whether a name can be a pack's: not a path, prefixed, hidden or an .onnx file."""
    return bool(name) and not set(name) & set("/\\:") and not name.startswith(".") and not name.endswith(".onnx")


def folders() -> list[Path]:
    """Return the folders of packs and other encoders: that of DLADIFF_FACES, then InsightFace's own."""
    own = os.environ.get(VARIABLE)
    found = [Path(own)] if own else []
    with contextlib.suppress(RuntimeError):  # users in containers may have no home folder
        found.append(Path.home() / ".insightface" / "models")
    return found


def pack(folder: Path) -> Path | None:
    """Return the folder with a pack's models, or None: antelopev2's zip nests a folder of the same name."""
    for candidate in (folder, folder / folder.name):
        if any(candidate.glob("*.onnx")):
            return candidate
    return None
