"""Where the files of a model come from: the hub, a bucket or a folder. Only `from_hub` uses the network's hub."""

import shutil
from pathlib import Path

from dladiff.diffusion.bundle import FILES, Pins, damage, model_files, needed
from dladiff.diffusion.bundle import verified_pins as verified
from dladiff.diffusion.catalogue import CHECKPOINTS
from dladiff.diffusion.complete import single_file_fault
from dladiff.errors import ModelError, StorageError
from pipeline.models.fingerprint import stored_pins
from pipeline.models.vaes import files_to_mirror, only_vae
from pipeline.storage.base import Storage

ANSWER_S = 30.0  # seconds to wait for the hub before trying the next mirror


def from_hub(ids: tuple[str, ...], partial: Path, endpoint: str | None, part: str = "") -> Pins:
    """Download from the first id that answers; return its revision, licence and the checksums of its large files.

    `part`: "vae/" downloads the files of this folder only.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    patterns = [pattern for pattern in FILES if pattern.startswith(part)]

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
            snapshot_download(wanted, revision=info.sha, local_dir=partial, allow_patterns=patterns, endpoint=endpoint)
        except GatedRepoError:
            tried.append(f"{hub_id}: asks for consent to its licence, on its page, and then for HF_TOKEN")
            continue
        except Exception as error:
            raise ModelError(f"{hub_id}: the download broke off ({_line(error)}); fetch again resumes it") from error
        large = {f.rfilename: f.lfs.sha256 for f in info.siblings or [] if f.lfs and _wanted(f.rfilename, part)}
        licence = str(getattr(info.card_data, "license", None) or "")
        return Pins(sha256=large, size={}, source=wanted, revision=info.sha or "", licence=licence)
    raise ModelError(
        f"no model came from the hub: {'; '.join(tried)}; check the network (HF_ENDPOINT, HF_TOKEN), or fetch it on "
        "another machine, models mirror it to a bucket or folder and fetch it with --from URI"
    )


def _wanted(path: str, part: str) -> bool:
    return needed(path) and path.startswith(part)


def from_bucket(storage: Storage, partial: Path, part: str = "") -> Pins:
    """Download a mirrored model, or its VAE; intact files of an interrupted download are kept."""
    pins = stored_pins(storage)
    pins = only_vae(pins, storage.uri) if part else pins
    for path in damage(partial, pins):
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        storage.get_file(path, partial / path)
    if faults := damage(partial, pins):
        raise ModelError(f"the model in {storage.uri} is damaged: {'; '.join(faults.values())}; mirror it again")
    return pins


def from_folder(root: Path, partial: Path, part: str = "") -> Pins:
    """Copy the needed files of a folder in the diffusers layout, or its VAE's; links are followed."""
    if root.is_file() and root.suffix in CHECKPOINTS:
        raise ModelError(single_file_fault(root))
    if not root.is_dir():
        raise StorageError(f"no such folder: {root}; give a folder, s3://bucket/prefix or a hub id to --from")
    pins, files = files_to_mirror(str(root)) if part else (verified(root), model_files(root))
    shutil.rmtree(partial, ignore_errors=True)
    for path, file in files.items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, partial / path)
    return pins


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
