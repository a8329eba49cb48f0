"""What weights a configuration names, by content: so that exchanged files are new work and moved ones are not."""

import hashlib
from pathlib import Path
from typing import Any

import dladiff
from dladiff import packs
from dladiff.bundle import CHECKSUMS, Pins, parse_pins, quick_digest
from dladiff.catalogue import locate
from dladiff.errors import ModelError, NotFoundError
from pipeline.storage import Storage, open_storage

EMBEDDED = Path(dladiff.__file__).parent / "profiles" / "tiny"
HASHED = 512 * 2**20  # bytes; of a larger file the size alone counts: a plan is not to read gigabytes
SKIPPED = frozenset({".md", ".txt", ".png", ".jpg"})
HELD = frozenset({".md", ".txt"})  # of a folder of class images


def by_content(method: dict[str, Any]) -> dict[str, Any]:
    """Return the method's settings with each local file or folder of weights replaced by its fingerprint.

    Weights that come with the package count too. What is not on this machine, but on the workers, keeps its name.
    """
    out = dict(method)
    out["model"], out["detector"] = fingerprint_model(out["model"]), faces(out["detector"])
    out["finetuning"] = out["finetuning"] | {"class_images": fingerprint(out["finetuning"]["class_images"], HELD)}
    out["lpips"] = fingerprint(out["lpips"])
    for name in ("encoders", "held_out"):
        out[name] = [faces(item) for item in out[name]]
    return out


def fingerprint_model(name: str) -> str:
    """Return the fingerprint of a model by what `locate` takes or an s3://bucket/prefix, or its name where it is not.

    Checksums that lie with the model count as its content. Raises ModelError where a bucket has none.
    """
    if name.startswith("s3://"):
        return f"sha256:{stored_pins(open_storage(name)).digest()}"
    try:
        place = locate(name)
    except ModelError:
        return name
    told = None if name == "embedded" else quick_digest(place)
    return f"sha256:{told}" if told else fingerprint(name if name == "embedded" else str(place))


def stored_pins(storage: Storage) -> Pins:
    """Read the checksums of a model in a bucket or folder. Raises ModelError where there are none."""
    try:
        return parse_pins(storage.get(CHECKSUMS), storage.uri_of(CHECKSUMS))
    except NotFoundError as error:
        raise ModelError(
            f"no {CHECKSUMS} in {storage.uri}: no model lies there, or its upload did not end; "
            f"dladiff models mirror MODEL {storage.uri} puts one there"
        ) from error


def faces(name: str) -> str:
    """Return the fingerprint of an encoder or detector, which may also be a pack's name or a `clip:` folder."""
    place = packs.find(name)
    return fingerprint(name if place is None else str(place))


def fingerprint(name: str, skipped: frozenset[str] = SKIPPED) -> str:
    """Return a digest of the file or folder, or the name where there is none."""
    place = EMBEDDED / "bundle" if name == "embedded" else Path(name)
    if name.startswith("embedded:"):
        place = EMBEDDED / "encoders" / f"{Path(name.removeprefix('embedded:')).name}.onnx"
    if not name or not place.exists():
        return name
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        if file.suffix.lower() in skipped or file.name.startswith("."):
            continue
        relative = file.name if file == place else file.relative_to(place).as_posix()
        digest.update(f"{relative}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        if file.stat().st_size <= HASHED:
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
