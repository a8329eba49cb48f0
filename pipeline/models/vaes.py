"""The VAEs of base models on this machine: listed, checked, refused. Nothing here imports torch."""

import shutil
from pathlib import Path
from typing import Any

from dladiff.diffusion.bundle import CHECKSUMS, VAE, Pins, damage, read_pins, vae_pins
from dladiff.diffusion.complete import incomplete_vae, vae_faults
from dladiff.diffusion.vae_architecture import read_vae
from dladiff.diffusion.vae_catalogue import PREFIX, VAES, known_vae_faults, locate_vae
from dladiff.errors import ModelError


def is_vae(name: str) -> bool:
    """Return whether a name is that of a known VAE, or of a folder that holds a VAE and no whole model."""
    folder = Path(name).expanduser()
    alone = any((folder / file).is_file() for file in ("config.json", f"{VAE}config.json"))
    return name.startswith(PREFIX) or (alone and not (folder / "model_index.json").is_file())


def listed_vaes() -> list[dict[str, Any]]:
    """Return a row for each known VAE: name (`profile`), models, ids, licence, gated ids, local folder or None."""
    rows = []
    for name, known in VAES.items():
        try:
            folder: Path | None = locate_vae(name)
            pins = read_pins(folder.parent) if folder else None
        except ModelError:
            folder = pins = None
        rows.append(
            {
                "profile": name,
                "models": known.models,
                "ids": [*known.ids],
                "gated": [*known.gated],
                "licence": known.licence,
                "folder": str(folder) if folder else None,
                "source": pins.source if pins else None,
                "revision": pins.revision if pins else None,
            }
        )
    return rows


def checked_vae(name: str) -> tuple[Path | None, list[str], list[str]]:
    """Return a VAE's folder, and a line for each fault and each note."""
    try:
        folder = locate_vae(name)
        pins = read_pins(folder.parent) if folder.name == VAE.rstrip("/") else None
    except ModelError as error:
        return None, [str(error)], []
    notes = [f"no {CHECKSUMS}: the files cannot be compared with the published ones; models mirror writes one"]
    broken: dict[str, str] = {}
    if pins is not None:
        notes = [f"{pins.source or 'unknown source'}, revision {pins.revision or 'unknown'}"]
        broken = damage(folder.parent, pins, VAE)
    try:
        faults = vae_config_faults(folder, name)
        broken = vae_faults(folder) | broken
    except ModelError as error:
        faults = [str(error)]
    return folder, [*broken.values(), *faults], notes


def vae_config_faults(folder: Path, name: str) -> list[str]:
    """Return a message for each property in which a VAE is not the named one. Raises ModelError: not supported."""
    read_vae(folder)
    return known_vae_faults(folder, name) if name in VAES else []


def refuse_vae(partial: Path, name: str) -> None:
    """Remove a download and raise ModelError when it is incomplete or not the requested VAE."""
    try:
        faults = [*vae_config_faults(partial / "vae", name), *vae_faults(partial / "vae").values()]
    except ModelError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if faults:
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelError(f"this is not the requested VAE, or it is incomplete: {'; '.join(faults)}")


def files_to_mirror(name: str) -> tuple[Pins, dict[str, Path]]:
    """Return the checksums of a local VAE and its files by their path in the copy. Raises ModelError."""
    folder = locate_vae(name)
    read_vae(folder)
    if fault := incomplete_vae(folder):
        raise ModelError(fault)
    pins = vae_pins(folder)
    return pins, {path: folder / path.removeprefix(VAE) for path in pins.sha256}


def only_vae(pins: Pins, where: str) -> Pins:
    """Return the pins of a model's VAE. Raises ModelError: it has none."""
    if not (found := pins.within(VAE)).sha256:
        raise ModelError(f"no {VAE} in {where}: it holds no VAE; dladiff models mirror VAE {where} writes one")
    return found
