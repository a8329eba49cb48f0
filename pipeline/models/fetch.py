"""Stable Diffusion models on this machine: list, check, fetch from the hub or a bucket, mirror.

Nothing here imports torch. Only `fetch` contacts the hub; runs do not.
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.bundle import (
    CHECKSUMS,
    PICKLES,
    VAE,
    Pins,
    damage,
    make_pins,
    read_pins,
)
from dladiff.diffusion.bundle import verified_pins as verified
from dladiff.diffusion.catalogue import (
    CHECKPOINTS,
    HUB_ID,
    MODELS,
    fetched_folder,
    locate,
    models_folder,
    profile_faults,
)
from dladiff.diffusion.complete import conversion, model_faults, single_file_fault
from dladiff.diffusion.vae_catalogue import VAES, locate_vae
from dladiff.errors import ConfigError, ModelError
from dladiff.settings.merge import nearest
from dladiff.settings.schema import method_config
from pipeline.models.encoders import checked_encoder, is_encoder, mirror_encoder
from pipeline.models.fetch_encoder import copied_encoders, fetch_encoder
from pipeline.models.fingerprint import stored_pins
from pipeline.models.folders import finish, locked
from pipeline.models.origins import from_bucket, from_folder, from_hub
from pipeline.models.vaes import checked_vae, files_to_mirror, is_vae, only_vae, refuse_vae
from pipeline.storage.base import TEMP_PREFIX, Storage
from pipeline.storage.open import local_path, open_storage


@dataclass(frozen=True)
class Checked:
    """Result of `check`: the model's folder or None, and a line for each fault and note."""

    folder: Path | None
    faults: list[str]
    notes: list[str]
    convert: tuple[str, ...] = ()
    """Lines of Python that convert a single-file checkpoint to a folder."""


def listed() -> list[dict[str, Any]]:
    """Return a row for each known model: profile, ids, licence, resolution, and its local folder or None."""
    rows = []
    for name, known in MODELS.items():
        try:
            folder: Path | None = locate(name)
            pins = read_pins(folder) if folder else None
        except ModelError:
            folder = pins = None
        rows.append(
            {
                "profile": name,
                "ids": [*known.ids],
                "withdrawn": [*known.withdrawn],
                "gated": [*known.gated],
                "licence": known.licence,
                "resolution": known.resolution,
                "folder": str(folder) if folder else None,
                "source": pins.source if pins else None,
                "revision": pins.revision if pins else None,
            }
        )
    return rows


def check(name: str, profile: str | None = None) -> Checked:
    """Check a model: every checksum, completeness, the architecture, the profile's facts, no pickles."""
    file = Path(name).expanduser()
    if file.suffix in CHECKPOINTS and file.is_file():
        return Checked(None, [single_file_fault(file).partition("; dladiff")[0]], [], (*conversion(file),))
    if is_encoder(name):
        return Checked(*checked_encoder(name))
    if is_vae(name):
        folder, faults, notes = checked_vae(name)
        return Checked(folder, faults + _pickles(folder) if folder else faults, notes)
    try:
        root = locate("embedded" if name == "tiny" else name)
        pins = read_pins(root)
    except ModelError as error:
        return Checked(None, [str(error)], [])
    faults, notes = [], []
    try:
        read_architecture(root)
        broken = model_faults(root)
        faults += profile_faults(root, profile or name) if (profile or name) in MODELS else []
    except ModelError as error:
        broken, faults = {}, [str(error)]
    if pins is None:
        notes.append(f"no {CHECKSUMS}: the files cannot be compared with the published ones; models mirror writes one")
    else:
        notes.append(f"{pins.source or 'unknown source'}, revision {pins.revision or 'unknown'}")
        broken = damage(root, pins) | broken
    faults = [*broken.values(), *faults]
    return Checked(root, faults + _pickles(root), notes)


def _pickles(root: Path) -> list[str]:
    """Return a line for each file of a model's folder that could run code."""
    found = sorted(p for pattern in ("*", "*/*") for p in root.glob(pattern) if p.suffix in PICKLES)
    return [f"{p.relative_to(root)} is a pickle, which can run code; it is never loaded: remove it" for p in found]


def fetch(name: str, source: str | None = None, *, endpoint: str | None = None) -> Path:
    """Copy a profile's model, or a hub id, to the models folder, and return its folder.

    The source is the hub (the first id that answers) or `source`: a folder, an s3://bucket/prefix or another hub id.
    The folder gets its final name when the model is complete, of a supported architecture, and has its checksums. An
    interrupted download is resumed. Raises ModelError, StorageError, ConfigError.
    """
    if is_encoder(name):
        return fetch_encoder(name, source)
    if name not in (*MODELS, *VAES) and HUB_ID.fullmatch(name) is None:
        known, near = ", ".join((*MODELS, *VAES)), nearest(name, [*MODELS, *VAES])
        raise ConfigError([f"{name}: no known model{near}; known: {known}, or a hub id owner/name"])
    target = fetched_folder(name)
    if name in VAES and source is None and not target.exists():
        with contextlib.suppress(ModelError):
            return locate_vae(name).parent  # of a model that is here
    revision = name.partition("@")[2]
    with locked(target):
        if _there(target, revision, source):
            return target
        if target.exists():
            raise ModelError(f"{target} exists without {CHECKSUMS}: move it away, or fetch --from it to another folder")
        partial = target.with_name(f"{TEMP_PREFIX}{target.name}")
        part = VAE if name in VAES else ""
        if source is None or (HUB_ID.fullmatch(source) and not Path(source).is_dir()):
            found = from_hub((source,) if source else _ids(name), partial, endpoint, part)
        elif (folder := local_path(source)) is None:
            found = from_bucket(open_storage(source), partial, part)
        else:
            found = from_folder(folder.expanduser(), partial, part)
        licence = found.licence or _licence(name)
        if part:
            refuse_vae(partial, name)
        else:
            _refuse(partial, name if name in MODELS else None)
        pins = make_pins(partial, found.source, found.revision, licence)
        wrong = [path for path, sha256 in found.sha256.items() if pins.sha256.get(path, sha256) != sha256]
        if wrong:
            shutil.rmtree(partial)
            raise ModelError(f"{', '.join(wrong)} came from {found.source} damaged; fetch again")
        finish(partial, target, pins)
    return target


def _there(target: Path, revision: str, source: str | None) -> bool:
    """Return whether a folder holds the wanted model. Raises ModelError: it is damaged, or another."""
    if (pins := read_pins(target)) is None:
        return False
    if faults := damage(target, pins):
        raise ModelError(f"{target} is damaged: {'; '.join(faults.values())}; remove it and fetch again")
    if not pins.revision.startswith(revision) or (source and HUB_ID.fullmatch(source) and pins.source != source):
        raise ModelError(f"{target} holds {pins.source}@{pins.revision}; remove it to fetch another")
    return True


def mirror(name: str, uri: str) -> Pins:
    """Copy a local model to a folder or s3://bucket/prefix, its checksums last; return the checksums.

    Raises ModelError when the model is missing, incomplete or not supported; StorageError.
    """
    if is_encoder(name):
        return mirror_encoder(name, uri)
    pins, files = files_to_mirror(name) if is_vae(name) else _whole(name)
    storage = open_storage(uri, create=True)
    with contextlib.suppress(ModelError):
        if stored_pins(storage).sha256 == pins.sha256:
            return pins
    storage.delete(CHECKSUMS)  # without checksums the partial copy does not count as a model
    for path, file in files.items():
        storage.put_file(path, file)
    storage.put(CHECKSUMS, pins.text().encode(), "application/json")
    return pins


def _whole(name: str) -> tuple[Pins, dict[str, Path]]:
    """Return the checksums of a local model and its files by path. Raises ModelError."""
    root = locate(name)
    read_architecture(root)
    if faults := model_faults(root):
        raise ModelError(f"the model in {root} is incomplete: {'; '.join(faults.values())}; fetch it again")
    pins = verified(root)
    return pins, {path: root / path for path in pins.sha256}


def on_this_machine(settings: Mapping[str, Any], opened: Callable[[str], Storage]) -> dict[str, Any]:
    """Return a protector's settings with models in buckets replaced by local folders; each model is copied once.

    `settings` holds profile, preset, overrides, and the address of the adapters' weights (`encoders_from`); `opened`
    opens a storage. Where only VAEs are needed, only they are copied. Encoders in buckets are copied too. Raises
    ConfigError, ModelError, StorageError.
    """
    overrides = settings.get("overrides") or {}
    config = method_config(settings["profile"], settings.get("preset"), overrides)
    changed: dict[str, Any] = {}
    if config.model.startswith("s3://") and (config.trains_surrogate or config.pushes_latents):
        changed["model"] = _copied(config.model, opened, "" if config.trains_surrogate else VAE)
    if any(name.startswith("s3://") for name in config.joint.vaes) and config.pushes_latents:
        vaes = [_copied(name, opened, VAE) if name.startswith("s3://") else name for name in config.joint.vaes]
        changed["joint"] = {**(overrides.get("joint") or {}), "vaes": vaes}
    changed |= copied_encoders(config, settings.get("encoders_from"), opened)
    return {**settings, "overrides": {**overrides, **changed}} if changed else dict(settings)


def _copied(uri: str, opened: Callable[[str], Storage], part: str) -> str:
    """Return the local folder of a model in a bucket, or of its VAE only (`part`)."""
    storage = opened(uri)
    pins = stored_pins(storage)
    pins = only_vae(pins, uri) if part else pins
    target = models_folder() / f"s3-{pins.digest()[:16]}"
    with locked(target):  # several actors of one machine may need it
        if not (target / CHECKSUMS).is_file():
            partial = target.with_name(f"{TEMP_PREFIX}{target.name}")
            finish(partial, target, from_bucket(storage, partial, part))
    return str(target)


def _ids(name: str) -> tuple[str, ...]:
    known = VAES.get(name) or MODELS.get(name)
    return known.ids if known else (name,)


def _licence(name: str) -> str:
    known = VAES.get(name) or MODELS.get(name)
    return known.licence if known else ""


def _refuse(partial: Path, profile: str | None) -> None:
    """Remove a download and raise ModelError when it is incomplete or not the requested model."""
    try:
        read_architecture(partial)
        faults = [*model_faults(partial).values(), *(profile_faults(partial, profile) if profile else [])]
    except ModelError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if faults:
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelError(f"this is not the requested model, or it is incomplete: {'; '.join(faults)}")
