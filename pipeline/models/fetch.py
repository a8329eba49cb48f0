"""Stable Diffusion models on this machine: list, check, fetch from the hub or a bucket, mirror.

Nothing here imports torch. Only `fetch` contacts the hub; runs do not.
"""

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.bundle import CHECKSUMS, FILES, PICKLES, Pins, damage, make_pins, model_files, needed, read_pins
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
from dladiff.errors import ConfigError, ModelError, StorageError
from dladiff.settings.merge import nearest
from dladiff.settings.schema import method_config
from pipeline.models.fingerprint import stored_pins
from pipeline.storage.base import TEMP_PREFIX, Storage
from pipeline.storage.open import local_path, open_storage

ANSWER_S = 30.0  # seconds to wait for the hub before trying the next mirror


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
    pickles = sorted(p for pattern in ("*", "*/*") for p in root.glob(pattern) if p.suffix in PICKLES)
    faults += [f"{p.relative_to(root)} is a pickle, which can run code; it is never loaded: remove it" for p in pickles]
    return Checked(root, faults, notes)


def fetch(name: str, source: str | None = None, *, endpoint: str | None = None) -> Path:
    """Copy a profile's model, or a hub id, to the models folder, and return its folder.

    The source is the hub (the first id that answers) or `source`: a folder, an s3://bucket/prefix or another hub id.
    The folder gets its final name when the model is complete, of a supported architecture, and has its checksums. An
    interrupted download is resumed. Raises ModelError, StorageError, ConfigError.
    """
    if name not in MODELS and HUB_ID.fullmatch(name) is None:
        known = ", ".join(MODELS)
        raise ConfigError([f"{name}: no known model{nearest(name, [*MODELS])}; known: {known}, or a hub id owner/name"])
    target = fetched_folder(name)
    revision = name.partition("@")[2]
    with _locked(target):
        if pins := read_pins(target):
            if faults := damage(target, pins):
                raise ModelError(f"{target} is damaged: {'; '.join(faults.values())}; remove it and fetch again")
            if not pins.revision.startswith(revision) or (
                source and HUB_ID.fullmatch(source) and pins.source != source
            ):
                raise ModelError(f"{target} holds {pins.source}@{pins.revision}; remove it to fetch another")
            return target
        if target.exists():
            raise ModelError(f"{target} exists without {CHECKSUMS}: move it away, or fetch --from it to another folder")
        partial = target.with_name(f"{TEMP_PREFIX}{target.name}")
        if source is None or (HUB_ID.fullmatch(source) and not Path(source).is_dir()):
            found = _from_hub(
                (source,) if source else MODELS[name].ids if name in MODELS else (name,), partial, endpoint
            )
        elif (folder := local_path(source)) is None:
            found = _from_bucket(open_storage(source), partial)
        else:
            found = _from_folder(folder.expanduser(), partial)
        licence = found.licence or (MODELS[name].licence if name in MODELS else "")
        _refuse(partial, name if name in MODELS else None)
        pins = make_pins(partial, found.source, found.revision, licence)
        wrong = [path for path, sha256 in found.sha256.items() if pins.sha256.get(path, sha256) != sha256]
        if wrong:
            shutil.rmtree(partial)
            raise ModelError(f"{', '.join(wrong)} came from {found.source} damaged; fetch again")
        _finish(partial, target, pins)
    return target


def mirror(name: str, uri: str) -> Pins:
    """Copy a local model to a folder or s3://bucket/prefix, its checksums last; return the checksums.

    Raises ModelError when the model is missing, incomplete or not supported; StorageError.
    """
    root = locate(name)
    read_architecture(root)
    if faults := model_faults(root):
        raise ModelError(f"the model in {root} is incomplete: {'; '.join(faults.values())}; fetch it again")
    pins = verified(root)
    storage = open_storage(uri, create=True)
    with contextlib.suppress(ModelError):
        if stored_pins(storage).sha256 == pins.sha256:
            return pins
    storage.delete(CHECKSUMS)  # without checksums the partial copy does not count as a model
    for path in pins.sha256:
        storage.put_file(path, root / path)
    storage.put(CHECKSUMS, pins.text().encode(), "application/json")
    return pins


def on_this_machine(settings: Mapping[str, Any], opened: Callable[[str], Storage]) -> dict[str, Any]:
    """Return a protector's settings with a model in a bucket replaced by a local folder; the model is copied once.

    `settings` holds profile, preset, overrides; `opened` opens a storage. Raises ConfigError, ModelError, StorageError.
    """
    overrides = settings.get("overrides") or {}
    uri = method_config(settings["profile"], settings.get("preset"), overrides).model
    if not uri.startswith("s3://"):
        return dict(settings)
    storage = opened(uri)
    pins = stored_pins(storage)
    target = models_folder() / f"s3-{pins.digest()[:16]}"
    with _locked(target):  # several actors of one machine may need it
        if not (target / CHECKSUMS).is_file():
            partial = target.with_name(f"{TEMP_PREFIX}{target.name}")
            _finish(partial, target, _from_bucket(storage, partial))
    return {**settings, "overrides": {**overrides, "model": str(target)}}


def _from_hub(ids: tuple[str, ...], partial: Path, endpoint: str | None) -> Pins:
    """Download from the first id that answers; return its revision, licence and the checksums of its large files."""
    from huggingface_hub import HfApi, snapshot_download

    tried = []
    for hub_id in ids:
        wanted, _, revision = hub_id.partition("@")
        try:
            info = HfApi(endpoint=endpoint).model_info(
                wanted, revision=revision or None, timeout=ANSWER_S, files_metadata=True
            )
        except Exception as error:  # of the hub's client or its HTTP library
            tried.append(f"{hub_id}: {_line(error)}")
            continue
        try:
            snapshot_download(wanted, revision=info.sha, local_dir=partial, allow_patterns=[*FILES], endpoint=endpoint)
        except Exception as error:
            raise ModelError(f"{hub_id}: the download broke off ({_line(error)}); fetch again resumes it") from error
        large = {f.rfilename: f.lfs.sha256 for f in info.siblings or [] if f.lfs and needed(f.rfilename)}
        licence = str(getattr(info.card_data, "license", None) or "")
        return Pins(sha256=large, size={}, source=wanted, revision=info.sha or "", licence=licence)
    raise ModelError(
        f"no model came from the hub: {'; '.join(tried)}; check the network (HF_ENDPOINT, HF_TOKEN), or fetch it on "
        "another machine, models mirror it to a bucket or folder and fetch it with --from URI"
    )


def _from_bucket(storage: Storage, partial: Path) -> Pins:
    """Download a mirrored model; intact files of an interrupted download are kept."""
    pins = stored_pins(storage)
    for path in damage(partial, pins):
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        storage.get_file(path, partial / path)
    if faults := damage(partial, pins):
        raise ModelError(f"the model in {storage.uri} is damaged: {'; '.join(faults.values())}; mirror it again")
    return pins


def _from_folder(root: Path, partial: Path) -> Pins:
    """Copy the needed files of a folder in the diffusers layout; links are followed."""
    if root.is_file() and root.suffix in CHECKPOINTS:
        raise ModelError(single_file_fault(root))
    if not root.is_dir():
        raise StorageError(f"no such folder: {root}; give a folder, s3://bucket/prefix or a hub id to --from")
    pins = verified(root)
    shutil.rmtree(partial, ignore_errors=True)
    for path, file in model_files(root).items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, partial / path)
    return pins


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


def _finish(partial: Path, target: Path, pins: Pins) -> None:
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # of the hub's client
    (partial / CHECKSUMS).write_text(pins.text(), encoding="utf-8")
    partial.rename(target)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of one model's folder. Raises StorageError when the models folder cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".lock-{target.name}").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise StorageError(f"{target.parent}: {why}; set DLADIFF_MODELS to a folder with enough free space") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
