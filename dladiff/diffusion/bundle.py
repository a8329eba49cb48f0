"""Files of a model folder in the diffusers layout: which are needed, their checksums, their origin.

Imports no torch, because the driver uses this module.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dladiff.diffusion.model_json import MAX_JSON, parsed, quoted
from dladiff.errors import ModelError

CHECKSUMS = "checksums.json"
"""File with the checksums of the others; written last, so that its presence means a complete copy."""
PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
"""Suffixes of weight files that can run code when loaded; such files are never loaded."""
VAE = "vae/"
"""Start of the paths of a VAE's files."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_LANGUAGE_MODEL = ("chat_template.jinja", "added_tokens.json")  # beside these, in a Qwen model's tokenizer


def _weights(stem: str) -> tuple[str, ...]:
    return "config.json", f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}-?????-of-?????.safetensors"


FILES: tuple[str, ...] = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in ("unet", "transformer", "vae") for name in _weights("diffusion_pytorch_model")),
    *(f"{part}/{name}" for part in ("text_encoder", "text_encoder_2", "text_encoder_3") for name in _weights("model")),
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2", "tokenizer_3") for name in _TOKENIZER),
    *(f"tokenizer/{name}" for name in _LANGUAGE_MODEL),
)
"""Patterns of the files that a surrogate loads: no variants (fp16, non_ema), no pickles, no safety checker."""


def needed(path: str) -> bool:
    """Return whether a surrogate loads this file; `path` is relative to the model's folder."""
    return any(fnmatchcase(path, pattern) for pattern in FILES)


@dataclass(frozen=True, kw_only=True)
class Pins:
    """Content of `checksums.json`: SHA-256 and bytes of each file; source, revision and licence of the model."""

    sha256: dict[str, str]
    size: dict[str, int]
    source: str = ""
    revision: str = ""
    licence: str = ""

    def digest(self) -> str:
        """Return the model's SHA-256, computed over its files' names and checksums."""
        total = hashlib.sha256()
        for path in sorted(self.sha256):
            total.update(f"{path}\0{self.sha256[path]}\n".encode())
        return total.hexdigest()

    def within(self, part: str) -> "Pins":
        """Return the pins of the files of one folder, such as "vae/"."""
        sha256 = {path: sha for path, sha in self.sha256.items() if path.startswith(part)}
        return replace(self, sha256=sha256, size={path: self.size[path] for path in sha256})

    def text(self) -> str:
        """Return the content of `checksums.json`."""
        files = {path: {"sha256": self.sha256[path], "bytes": self.size[path]} for path in sorted(self.sha256)}
        about = {"source": self.source, "revision": self.revision, "licence": self.licence}
        return json.dumps(about | {"files": files}, indent=1) + "\n"


def parse_pins(text: str | bytes, where: str, allowed: Callable[[str], bool] = needed) -> Pins:
    """Return the content of a `checksums.json`. Raises ModelError: not valid, or names a file that is not allowed."""
    try:
        if len(text) > MAX_JSON:
            raise ValueError("too large")
        found: Mapping[str, Any] = parsed(text)
        files = {str(path): (str(entry["sha256"]), int(entry["bytes"])) for path, entry in found["files"].items()}
        about = {name: str(found[name]) for name in ("source", "revision", "licence")}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(f"{where}: not a list of checksums; mirror the model again: dladiff models mirror") from error
    strange = [path for path in files if not allowed(path)]
    if strange or not files:
        raise ModelError(
            f"{where}: names {quoted(repr(strange[0]))}, which no model needs" if strange else f"{where}: names no file"
        )
    sha256, size = ({path: entry[i] for path, entry in files.items()} for i in (0, 1))
    return Pins(sha256=sha256, size=size, **about)  # type: ignore[arg-type]


def read_pins(root: Path) -> Pins | None:
    """Return the content of the folder's `checksums.json`, None without one. Raises ModelError."""
    file = root / CHECKSUMS
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return parse_pins(stream.read(MAX_JSON + 1), str(file))


def make_pins(root: Path, source: str = "", revision: str = "", licence: str = "") -> Pins:
    """Return the pins of the folder's needed files; in the hub's cache the path gives source and revision."""
    hub = _hub_origin(root)
    files = model_files(root)
    return Pins(
        sha256={path: file_sha256(file) for path, file in files.items()},
        size={path: file.stat().st_size for path, file in files.items()},
        source=source or (hub[0] if hub else ""),
        revision=revision or (hub[1] if hub else ""),
        licence=licence,
    )


def model_files(root: Path) -> dict[str, Path]:
    """Return the needed files of the folder by relative path, sorted."""
    found = {file.relative_to(root).as_posix(): file for file in root.glob("*") if file.is_file()}
    found |= {file.relative_to(root).as_posix(): file for file in root.glob("*/*") if file.is_file()}
    return {path: found[path] for path in sorted(found) if needed(path)}


def damage(root: Path, pins: Pins, part: str = "") -> dict[str, str]:
    """Return a message for each file, by path, that is missing, short, changed, or without a checksum.

    `part`: "vae/" checks the files of this folder only.
    """
    faults = {}
    for path, sha256 in pins.sha256.items():
        if not path.startswith(part):
            continue
        file = root / path
        have = file.stat().st_size if file.is_file() else None
        if have is None:
            faults[path] = f"{path} is missing"
        elif have != pins.size[path]:
            faults[path] = f"{path} has {have} of {pins.size[path]} bytes: an incomplete copy"
        elif file_sha256(file) != sha256:
            faults[path] = f"{path} is not the file that {CHECKSUMS} names"
    unnamed = sorted(path for path in model_files(root).keys() - pins.sha256.keys() if path.startswith(part))
    return faults | {path: f"{path} is not named in {CHECKSUMS}" for path in unnamed}


def verified_pins(root: Path) -> Pins:
    """Return the pins of the folder's files. Raises ModelError if they do not match its `checksums.json`."""
    pins = read_pins(root)
    if pins is None:
        return make_pins(root)
    if faults := damage(root, pins):
        raise ModelError(
            f"the model in {root} is damaged: {'; '.join(faults.values())}; remove the folder and fetch it again"
        )
    return pins


def vae_pins(folder: Path) -> Pins:
    """Return the pins of a VAE's files, named `vae/...` wherever the folder is: one VAE has one digest.

    Raises ModelError if they do not match the `checksums.json` of the model's folder that holds it.
    """
    root, part = folder.parent, f"{folder.name}/"
    stored = read_pins(root) if part == VAE else None
    if stored is not None:
        if faults := damage(root, stored, VAE):
            raise ModelError(
                f"the VAE in {root} is damaged: {'; '.join(faults.values())}; remove it and fetch it again"
            )
        return stored.within(VAE)
    files = {f"{VAE}{file.name}": file for file in sorted(folder.glob("*")) if file.is_file()}
    files = {path: file for path, file in files.items() if needed(path)}
    hub = (_hub_origin(root) if part == VAE else _hub_origin(folder)) or ("", "")
    return Pins(
        sha256={path: file_sha256(file) for path, file in files.items()},
        size={path: file.stat().st_size for path, file in files.items()},
        source=hub[0],
        revision=hub[1],
    )


def quick_digest(root: Path) -> str | None:
    """Return a model's digest without reading its weights, None where it is not available.

    Taken from `checksums.json`, or from the hub's cache, whose large files link to blobs named by their SHA-256.
    """
    if pins := read_pins(root):
        return pins.digest()
    if _hub_origin(root) is None:
        return None
    blobs = {path: file.resolve() for path, file in model_files(root).items()}
    if any(re.fullmatch("[0-9a-f]{64}", b.name) is None for path, b in blobs.items() if path.endswith(".safetensors")):
        return None
    names = {path: b.name if path.endswith(".safetensors") else file_sha256(b) for path, b in blobs.items()}
    return Pins(sha256=names, size={}).digest()


def _hub_origin(root: Path) -> tuple[str, str] | None:
    """Return hub id and commit of a folder `models--OWNER--NAME/snapshots/COMMIT`, None for other folders."""
    kind, *parts = root.parent.parent.name.split("--")
    return ("/".join(parts), root.name) if root.parent.name == "snapshots" and kind == "models" else None


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
