"""Encoders copied to this machine from a folder or a bucket, each once, checked by their checksums."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dladiff.diffusion.bundle import CHECKSUMS, damage
from dladiff.diffusion.catalogue import models_folder
from dladiff.errors import ConfigError, ModelError
from dladiff.faces.packs import CLIP
from dladiff.faces.weights import FETCHED, WEIGHTS, fetched_weights
from dladiff.settings.merge import nearest
from dladiff.settings.schema import MethodConfig
from pipeline.models.encoders import copied, download, encoder_pins, lacking_weights, read_encoder_pins, within
from pipeline.models.folders import finish, locked
from pipeline.storage.base import TEMP_PREFIX, Storage


def fetch_encoder(name: str, source: str | None) -> Path:
    """Copy known weights to the models folder, and return their folder.

    Raises ModelError, StorageError, ConfigError.
    """
    known = WEIGHTS.get(short := name.removeprefix(FETCHED))
    if known is None:
        listed = ", ".join(f"{FETCHED}{one}" for one in WEIGHTS)
        raise ConfigError([f"{name}: no known weights{nearest(short, list(WEIGHTS))}; known: {listed}"])
    if source is None:
        raise ConfigError([f"{name}: needs --from, a folder, a file or s3://bucket/prefix with {known.wanted()}"])
    target = fetched_weights(short)
    with locked(target):
        if (pins := read_encoder_pins(target)) is not None:
            if faults := damage(target, pins):
                raise ModelError(f"{target} is damaged: {'; '.join(faults.values())}; remove it and fetch again")
            return target
        partial = target.with_name(f"{TEMP_PREFIX}{target.name}")
        found = copied(source, partial)
        if not known.folder and known.file not in found.sha256:
            shutil.rmtree(partial, ignore_errors=True)
            raise ModelError(f"{source} does not hold {known.file}, but {', '.join(found.sha256)}")
        finish(partial, target, replace(found, licence=found.licence or known.licence))
    return target


def copied_encoders(config: MethodConfig, source: str | None, opened: Callable[[str], Storage]) -> dict[str, Any]:
    """Copy the encoders in buckets and, from `source`, the adapters' weights; return the settings that change."""
    changed = {}
    for setting in ("encoders", "held_out"):
        names = getattr(config, setting)
        if any("s3://" in name for name in names):
            changed[setting] = [_copied_encoder(name, opened) for name in names]
    if source:
        for weights in lacking_weights([*config.encoders, *config.held_out]):
            fetch_encoder(f"{FETCHED}{weights}", within(source, weights))
    return changed


def _copied_encoder(name: str, opened: Callable[[str], Storage]) -> str:
    """Return an encoder's name with a bucket (`s3://...`, `clip:s3://...`) replaced by the local copy."""
    prefix = CLIP if name.startswith(CLIP) else ""
    if not (uri := name.removeprefix(prefix)).startswith("s3://"):
        return name
    storage = opened(uri)
    pins = encoder_pins(storage)
    target = models_folder() / f"s3-{pins.digest()[:16]}" / (uri.rstrip("/").rpartition("/")[2] or "encoder")
    with locked(target):
        if not (target / CHECKSUMS).is_file():
            partial = target.with_name(f"{TEMP_PREFIX}{target.name}")
            finish(partial, target, download(storage, partial))
    (only, *more) = pins.sha256
    return prefix + str(target if more or prefix else target / only)
