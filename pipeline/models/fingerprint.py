"""Weights named in a configuration: which are missing here, and digests of their content for the work's key."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dladiff
from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.bundle import CHECKSUMS, VAE, Pins, parse_pins, quick_digest, read_pins
from dladiff.diffusion.catalogue import locate, profile_fault
from dladiff.diffusion.complete import incomplete_vae, model_faults
from dladiff.diffusion.transformer_architecture import settings_fault
from dladiff.diffusion.vae_architecture import read_vae
from dladiff.diffusion.vae_catalogue import locate_vae, resolution_fault, vae_profile_fault
from dladiff.errors import ModelError, NotFoundError
from dladiff.faces import packs
from dladiff.faces.weights import fetched_weights, find, missing_weights
from dladiff.layers.pushed import pushed_vaes
from dladiff.settings.adapters import PREFIX, reading_of
from dladiff.settings.schema import MethodConfig
from pipeline.models.encoders import encoder_pins, read_encoder_pins, stored_weights, within
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

EMBEDDED = Path(dladiff.__file__).parent / "profiles" / "tiny"
SHIPPED = "embedded:"  # prefix of the name of an encoder in the package
HASHED = 512 * 2**20  # bytes; of a larger file only the size counts: planning must not read gigabytes
SKIPPED = frozenset({".md", ".txt", ".png", ".jpg"})  # not part of a model's fingerprint
NOT_IMAGES = frozenset({".md", ".txt"})  # the same for a folder of class images


def missing(method: MethodConfig, encoders_from: str | None = None) -> list[str]:
    """Return a line for each model or file that the settings need and this machine lacks; loads no weights.

    All that adapters lack is one line. What `encoders_from` (a folder or bucket) holds is copied by the run. Raises
    StorageError when a bucket is out of reach.
    """
    by_fault: dict[str, list[str]] = {}
    for setting, fault in _faults(method, encoders_from):  # `faces` sets encoders and detector: one line
        by_fault.setdefault(fault, []).append(setting)
    return [f"{', '.join(dict.fromkeys(settings))}: {fault}" for fault, settings in by_fault.items()]


def _faults(method: MethodConfig, encoders_from: str | None) -> Iterator[tuple[str, str]]:
    if method.trains_surrogate:
        yield from _model_faults(method)
    yield from _vae_faults(method)
    for setting in ("encoders", "held_out"):
        if fault := missing_weights(getattr(method, setting), stored_weights(encoders_from)):
            yield setting, fault
        for name in getattr(method, setting):
            if name.startswith(PREFIX):
                continue
            if fault := _shipped_fault(name) if name.startswith(SHIPPED) else _found_fault(name):
                yield setting, fault
    if method.detector != "centerface" and (fault := _found_fault(method.detector)):
        yield "detector", fault
    images = method.finetuning.class_images
    if images and not Path(images).is_dir():
        yield "finetuning.class_images", f"no folder {images}: name a folder of photos of other people"


def _model_faults(method: MethodConfig) -> Iterator[tuple[str, str]]:
    try:
        if method.model.startswith("s3://"):
            stored_pins(open_storage(method.model))
        else:
            root = locate(method.model)
            architecture = read_architecture(root)
            compared, rank = method.protection != "dladiff", method.finetuning.low_rank
            if fault := settings_fault(architecture, compared, rank, method.gpu_memory):
                setting, _, why = fault.partition(": ")
                yield setting, why
            if faults := model_faults(root):
                yield "model", f"the model in {root} is incomplete: {'; '.join(faults.values())}; fetch it again"
            if fault := profile_fault(method.profile, root):
                yield "model", fault
    except ModelError as error:
        yield "model", str(error)


def _vae_faults(method: MethodConfig) -> Iterator[tuple[str, str]]:
    """Yield what the VAEs of the latent push lack: the rest of a model is not needed for it."""
    setting = "joint.vaes" if method.joint.vaes else "model"
    try:
        for name in pushed_vaes(method):
            if name.startswith("s3://"):
                if not stored_pins(open_storage(name)).within(VAE).sha256:
                    yield setting, f"{name} holds no VAE"
                continue
            folder = locate_vae(name)
            factor = read_vae(folder).factor
            if fault := incomplete_vae(folder):
                yield setting, fault
                continue
            if fault := resolution_fault(name, factor, method.resolution):
                yield setting, fault
            if not method.joint.vaes and (fault := vae_profile_fault(method.profile, name)):
                yield setting, fault
    except ModelError as error:
        yield setting, str(error)


def _shipped_fault(name: str) -> str | None:
    known = sorted(file.stem for file in (EMBEDDED / "encoders").glob("*.onnx"))
    short = name.removeprefix(SHIPPED)
    return None if short in known else f"no embedded encoder named {short!r}; this package ships: {', '.join(known)}"


def _found_fault(name: str) -> str | None:
    try:
        if (uri := name.removeprefix(packs.CLIP)).startswith("s3://"):
            encoder_pins(open_storage(uri))
            return None
        path = packs.located(name)
    except ModelError as error:
        return str(error)
    if path.is_dir() and not name.startswith(packs.CLIP) and not any(path.glob("*.onnx")):
        return f"no ONNX file in {path}: name an InsightFace pack folder, unpacked"
    return None


def by_content(config: MethodConfig, encoders_from: str | None = None) -> dict[str, Any]:
    """Return the method's settings with each local file or folder of weights replaced by its fingerprint.

    Weights in the package are included. Weights that only the workers have keep their name. Of a model that no layer
    needs as a whole only the VAE counts.
    """
    out = config.to_dict()
    out["model"] = fingerprint_model(config.model) if config.trains_surrogate else ""
    try:
        pushed = pushed_vaes(config)
    except ModelError:  # asks for all that are here, and none is
        pushed = [*config.joint.vaes]
    out["joint"] = out["joint"] | {"vaes": [fingerprint_vae(name) for name in pushed]}
    out["detector"] = faces(out["detector"])
    out["finetuning"] = out["finetuning"] | {"class_images": fingerprint(out["finetuning"]["class_images"], NOT_IMAGES)}
    for name in ("encoders", "held_out"):
        out[name] = [faces(item, encoders_from) for item in out[name]]
    return out


def fingerprint_model(name: str) -> str:
    """Return the fingerprint of a model (a name for `locate` or s3://bucket/prefix), or the name if it is not here.

    Checksums stored with the model count as its content. Raises ModelError for a bucket without checksums.
    """
    if name.startswith("s3://"):
        return f"sha256:{stored_pins(open_storage(name)).digest()}"
    try:
        path = locate(name)
    except ModelError:
        return name
    stored = None if name == "embedded" else quick_digest(path)
    return f"sha256:{stored}" if stored else fingerprint(name if name == "embedded" else str(path))


def fingerprint_vae(name: str) -> str:
    """Return the fingerprint of a VAE (a name for `locate_vae` or s3://bucket/prefix), or the name if it is not here.

    Raises ModelError for a bucket without checksums.
    """
    if name.startswith("s3://"):
        return f"sha256:{stored_pins(open_storage(name)).within(VAE).digest()}"
    try:
        folder = locate_vae(name)
        stored = read_pins(folder.parent) if folder.name == VAE.rstrip("/") else None
    except ModelError:
        return name
    return f"sha256:{stored.within(VAE).digest()}" if stored else fingerprint(str(folder))


def stored_pins(storage: Storage) -> Pins:
    """Read the checksums of a model in a bucket or folder. Raises ModelError if there are none."""
    try:
        return parse_pins(storage.get(CHECKSUMS), storage.uri_of(CHECKSUMS))
    except NotFoundError as error:
        raise ModelError(
            f"no {CHECKSUMS} in {storage.uri}: it holds no model, or an incomplete upload; "
            f"dladiff models mirror MODEL {storage.uri} writes one"
        ) from error


def faces(name: str, encoders_from: str | None = None) -> str:
    """Return the fingerprint of an encoder or detector: a file, folder, pack name, `clip:` folder or reading.

    Of encoders in a bucket, the stored checksums count.
    """
    if name.startswith(PREFIX):
        return _of_reading(name, encoders_from)
    if (uri := name.removeprefix(packs.CLIP)).startswith("s3://"):
        return f"sha256:{encoder_pins(open_storage(uri)).digest()}"
    path = packs.find(name)
    return fingerprint(name if path is None else str(path))


def _of_reading(name: str, encoders_from: str | None) -> str:
    """Return the fingerprint of a reading: how it reads, and its weights' content, or their name if they are not here.

    Checksums stored with the weights count as their content.
    """
    reading, parts = reading_of(name), []
    for weights in filter(None, (reading.weights, reading.mask)):
        path = find(weights)
        pins = (
            read_encoder_pins(fetched_weights(weights))
            if path and path.is_relative_to(fetched_weights(weights))
            else None
        )
        if path is None and stored_weights(encoders_from)(weights):
            pins = encoder_pins(open_storage(within(str(encoders_from), weights)))
        content = f"sha256:{pins.digest()}" if pins else fingerprint(str(path)) if path else weights
        parts.append(content)
    return f"{reading} {' '.join(parts)}"


def fingerprint(name: str, skipped: frozenset[str] = SKIPPED) -> str:
    """Return "sha256:" and a digest of the file or folder, or the name if it does not exist."""
    path = EMBEDDED / "bundle" if name == "embedded" else Path(name)
    if name.startswith(SHIPPED):
        path = EMBEDDED / "encoders" / f"{Path(name.removeprefix(SHIPPED)).name}.onnx"
    if not name or not path.exists():
        return name
    return _of_package(path, skipped) if path.is_relative_to(EMBEDDED) else _digest(path, skipped)


def _digest(path: Path, skipped: frozenset[str]) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        if file.suffix.lower() in skipped or file.name.startswith("."):
            continue
        relative = file.name if file == path else file.relative_to(path).as_posix()
        digest.update(f"{relative}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        if file.stat().st_size <= HASHED:
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


_of_package = functools.cache(_digest)  # its files are the same for as long as the process runs
