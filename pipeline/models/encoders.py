"""Weights of encoders on this machine and in buckets: listed, checked, fetched, mirrored. Nothing here imports torch.

`encoder:NAME` means known weights (`dladiff.faces.weights.WEIGHTS`), `encoder:PATH` an ONNX file, a pack or a folder
saved by transformers.
"""

import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from dladiff.diffusion.bundle import CHECKSUMS, Pins, damage, file_sha256, parse_pins
from dladiff.errors import ModelError, NotFoundError, StorageError
from dladiff.faces import packs
from dladiff.faces.weights import FETCHED, WEIGHTS, find, needed_by
from dladiff.settings.merge import nearest
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

SUFFIXES = frozenset({".onnx", ".safetensors", ".json"})
"""Files of encoders; a pickle is never copied."""
PARTS = 2
"""Deepest path of a file: antelopev2's zip nests a folder."""


def is_encoder(name: str) -> bool:
    """Return whether a name is `encoder:...`."""
    return name.startswith(FETCHED)


def encoder_file(path: str) -> bool:
    """Return whether an encoder's checksums may name this file."""
    parts = PurePosixPath(path).parts
    plain = all(part not in ("..", "/") and not part.startswith(".") for part in parts) and "\\" not in path
    return plain and 0 < len(parts) <= PARTS and PurePosixPath(path).suffix in SUFFIXES and path != CHECKSUMS


def encoder_pins(storage: Storage) -> Pins:
    """Return the checksums of an encoder in a bucket or folder. Raises ModelError if there are none."""
    try:
        return parse_pins(storage.get(CHECKSUMS), storage.uri_of(CHECKSUMS), encoder_file)
    except NotFoundError as error:
        raise ModelError(
            f"no {CHECKSUMS} in {storage.uri}: it holds no encoder, or an incomplete upload; "
            f"dladiff models mirror encoder:NAME {storage.uri} writes one"
        ) from error


def read_encoder_pins(folder: Path) -> Pins | None:
    """Return the checksums in a folder of fetched weights, None without them. Raises ModelError."""
    file = folder / CHECKSUMS
    return parse_pins(file.read_bytes(), str(file), encoder_file) if file.is_file() else None


def stored_weights(source: str | None) -> Callable[[str], bool]:
    """Return whether a folder or bucket holds known weights, by name. Raises StorageError: a bucket is out of reach."""

    def stored(name: str) -> bool:
        if source is None or not (source.startswith("s3://") or Path(within(source, name)).expanduser().is_dir()):
            return False
        try:
            encoder_pins(open_storage(within(source, name)))
        except ModelError:
            return False
        return True

    return stored


def within(source: str, name: str) -> str:
    """Return the address of weights in a folder or bucket that holds several."""
    return f"{source.rstrip('/')}/{name}"


def listed_encoders() -> list[dict[str, Any]]:
    """Return a row for each of the known weights: name (`profile`), file, licence, place, local path or None."""
    return [
        {
            "profile": f"{FETCHED}{name}",
            "file": known.file,
            "licence": known.licence,
            "place": known.place,
            "gated": [],
            "folder": str(path) if (path := find(name)) else None,
        }
        for name, known in WEIGHTS.items()
    ]


def source_of(name: str) -> Path:
    """Return the file or folder that `encoder:NAME` or `encoder:PATH` means. Raises ModelError: not here."""
    short = name.removeprefix(FETCHED)
    if short in WEIGHTS:
        if path := find(short):
            return path
        raise ModelError(f"{name} is not on this machine: {WEIGHTS[short].wanted()}; put it in {_places()}")
    path = Path(short).expanduser()
    if path.is_file() and path.suffix in SUFFIXES:
        return path
    if path.is_dir():
        return packs.pack(path) or path
    known = ", ".join(f"{FETCHED}{one}" for one in WEIGHTS)
    raise ModelError(f"{name}: no known weights{nearest(short, list(WEIGHTS))}, and no such file; known: {known}")


def _places() -> str:
    return " or ".join(map(str, packs.folders())) or f"the folder that {packs.VARIABLE} names"


def files_of(path: Path) -> dict[str, Path]:
    """Return an encoder's files by their path in a copy. Raises ModelError: none, or one is a pickle's."""
    if path.is_file():
        return {path.name: path}
    found = {file.name: file for file in sorted(path.iterdir()) if file.is_file() and encoder_file(file.name)}
    if not any(name.endswith((".onnx", ".safetensors")) for name in found):
        raise ModelError(f"{path} holds no encoder: neither an ONNX nor a safetensors file")
    return found


def pins_of(path: Path, licence: str = "") -> Pins:
    """Return the checksums of an encoder's files; they must match the folder's own, where it has some."""
    stored = read_encoder_pins(path if path.is_dir() else path.parent)
    files = files_of(path)
    if stored is not None and files.keys() <= stored.sha256.keys():
        root = path if path.is_dir() else path.parent
        if faults := damage(root, stored):
            raise ModelError(f"{path} is damaged: {'; '.join(faults.values())}; remove it and fetch it again")
        return stored
    sha256 = {name: file_sha256(file) for name, file in files.items()}
    return Pins(sha256=sha256, size={name: file.stat().st_size for name, file in files.items()}, licence=licence)


def checked_encoder(name: str) -> tuple[Path | None, list[str], list[str]]:
    """Return an encoder's file or folder, and a line for each fault and each note."""
    try:
        path = source_of(name)
        stored = read_encoder_pins(path if path.is_dir() else path.parent)
        pins_of(path)
    except ModelError as error:
        return None, [str(error)], []
    note = f"no {CHECKSUMS}: the files cannot be compared with others; models mirror writes one"
    return path, [], [f"licence: {stored.licence or 'not recorded'}" if stored else note]


def mirror_encoder(name: str, uri: str) -> Pins:
    """Copy an encoder to a folder or s3://bucket/prefix, its checksums last; return the checksums."""
    path = source_of(name)
    known = WEIGHTS.get(name.removeprefix(FETCHED))
    pins, storage = pins_of(path, known.licence if known else ""), open_storage(uri, create=True)
    try:
        if encoder_pins(storage).sha256 == pins.sha256:
            return pins
    except ModelError:
        pass
    storage.delete(CHECKSUMS)  # without checksums the partial copy does not count as an encoder
    for file, local in files_of(path).items():
        storage.put_file(file, local)
    storage.put(CHECKSUMS, pins.text().encode(), "application/json")
    return pins


def download(storage: Storage, partial: Path) -> Pins:
    """Copy a mirrored encoder to a folder; intact files of an interrupted copy are kept. Raises ModelError: damaged."""
    pins = encoder_pins(storage)
    for file in damage(partial, pins):
        (partial / file).parent.mkdir(parents=True, exist_ok=True)
        storage.get_file(file, partial / file)
    if faults := damage(partial, pins):
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelError(f"the encoder in {storage.uri} is damaged: {'; '.join(faults.values())}; mirror it again")
    return pins


def copied(source: str, partial: Path) -> Pins:
    """Copy an encoder from an address: a mirror with checksums, or a plain local folder or file."""
    local = Path(source).expanduser()
    if source.startswith("s3://") or (local / CHECKSUMS).is_file():
        return download(open_storage(source), partial)
    if not local.exists():
        raise StorageError(f"no such file or folder: {source}; give a folder, a file or s3://bucket/prefix")
    path = local if local.is_file() else packs.pack(local) or local
    pins = pins_of(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, file in files_of(path).items():
        shutil.copyfile(file, partial / name)
    return pins


def lacking_weights(encoders: list[str]) -> list[str]:
    """Return the names of the weights that adapters among these encoders need and this machine lacks."""
    return [name for name in needed_by(encoders) if find(name) is None]
