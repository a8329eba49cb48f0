"""Known VAEs (hub ids with mirrors, licences) and their folders on this machine. Never uses the network.

Several base models share a latent space, so few VAEs stand for many of them.
"""

from dataclasses import dataclass
from pathlib import Path

from dladiff.diffusion.catalogue import (
    CHECKPOINTS,
    EMBEDDED,
    HUB_ID,
    MODELS,
    SD,
    SDXL,
    fetched_folder,
    here,
    on_disk,
)
from dladiff.diffusion.complete import single_file_fault
from dladiff.diffusion.vae_architecture import FLUX2, KL, QWEN, VaeArchitecture, read_vae
from dladiff.errors import ModelError

PREFIX = "vae:"
CONFIG = "vae/config.json"


@dataclass(frozen=True, kw_only=True)
class KnownVae:
    """The VAE of one latent space."""

    name: str
    models: str
    """The base models that have this latent space."""
    ids: tuple[str, ...]
    """Hub ids of models in the diffusers layout whose folder vae/ holds it, in the order that `fetch` tries them."""
    licence: str
    gated: tuple[str, ...] = ()
    """Those of `ids`, or the owner's, that ask for an account and its consent to a licence."""
    profiles: tuple[str, ...] = ()
    """Profiles whose fetched model holds it."""
    architecture: VaeArchitecture


VAES: dict[str, KnownVae] = {
    vae.name: vae
    for vae in (
        KnownVae(
            name="vae:sd",
            models="Stable Diffusion 1 and 2",
            ids=(*MODELS["sd21"].ids, *MODELS["sd15"].ids),
            licence="CreativeML Open RAIL++-M",
            profiles=("sd21", "sd21-768", "sd15"),
            architecture=VaeArchitecture(kind=KL, channels=4, factor=8, scaling=SD),
        ),
        KnownVae(
            name="vae:sdxl",
            models="SDXL",
            ids=MODELS["sdxl"].ids,
            licence="CreativeML Open RAIL++-M",
            profiles=("sdxl",),
            architecture=VaeArchitecture(kind=KL, channels=4, factor=8, scaling=SDXL),
        ),
        KnownVae(
            name="vae:sd3",
            models="Stable Diffusion 3 and 3.5",
            ids=("adamo1139/stable-diffusion-3.5-large-ungated", "stabilityai/stable-diffusion-3.5-large"),
            gated=("stabilityai/stable-diffusion-3.5-large",),
            profiles=("sd35",),
            licence="Stability AI Community License",
            architecture=VaeArchitecture(kind=KL, channels=16, factor=8, scaling=1.5305),
        ),
        KnownVae(
            name="vae:flux1",
            models="FLUX.1, Z-Image, Lumina-Image 2",
            ids=("Tongyi-MAI/Z-Image-Turbo", "black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev"),
            gated=("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev"),
            profiles=("flux1", "flux1-schnell"),
            licence="Apache-2.0",
            architecture=VaeArchitecture(kind=KL, channels=16, factor=8, scaling=0.3611),
        ),
        KnownVae(
            name="vae:flux2",
            models="FLUX.2",
            ids=("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-dev"),
            gated=("black-forest-labs/FLUX.2-dev",),
            profiles=("flux2-klein",),
            licence="Apache-2.0",
            architecture=VaeArchitecture(kind=FLUX2, channels=32, factor=16, scaling=1.0),
        ),
        KnownVae(
            name="vae:qwen",
            models="Qwen-Image",
            ids=("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit"),
            profiles=("qwen-image",),
            licence="Apache-2.0",
            architecture=VaeArchitecture(kind=QWEN, channels=16, factor=8, scaling=1.0),
        ),
    )
}
"""Known VAEs by name."""


def locate_vae(name: str) -> Path:
    """Return the folder of a VAE (it holds config.json): a known VAE's, or the VAE of a model as `locate` names it.

    A folder may be the VAE's own or a model's. Nothing is downloaded. Raises ModelError: not on this machine.
    """
    if name == "embedded":
        return EMBEDDED / "vae"
    if name.startswith(PREFIX):
        return _of_known(name)
    if name in MODELS:
        return _of_profile(name)
    if name.startswith("s3://"):
        raise ModelError(f"{name} is read by a run only; here: dladiff models fetch NAME --from {name}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        own = next((f for f in (folder / "vae", folder) if (f / "config.json").is_file()), None)
        if own is None:
            raise ModelError(f"no VAE in {folder}: expected vae/config.json or config.json")
        return own
    if folder.is_file() and folder.suffix in CHECKPOINTS:
        raise ModelError(single_file_fault(folder))
    if HUB_ID.fullmatch(name) and (found := here(CONFIG, name)):
        return found / "vae"
    hint = f"dladiff models fetch {name} gets it" if HUB_ID.fullmatch(name) else "dladiff models list shows what is"
    raise ModelError(f"{name}: no folder of a VAE or model here, and none fetched; {hint}")


def _of_known(name: str) -> Path:
    if name not in VAES:
        raise ModelError(f"{name}: no known VAE; known: {', '.join(VAES)}")
    if found := _found(VAES[name]):
        return found
    raise ModelError(f"{name}, the VAE of {VAES[name].models}, is not on this machine: dladiff models fetch {name}")


def _of_profile(name: str) -> Path:
    known = MODELS[name]
    whole = on_disk(fetched_folder(name), CONFIG) or here(CONFIG, *known.ids, *known.withdrawn)
    if whole:
        return whole / "vae"
    shared = next((vae for vae in VAES.values() if name in vae.profiles), None)
    if shared and (found := _found(shared)):
        return found
    less = f"dladiff models fetch {shared.name} gets its VAE, which is all that is needed; " if shared else ""
    raise ModelError(
        f"the VAE of {name} is not on this machine: {less}dladiff models fetch {name} gets the whole model (from a "
        "bucket or folder with --from URI), or set method.model to its folder"
    )


def fetched_vaes() -> tuple[list[str], list[str]]:
    """Return the names of the known VAEs on this machine, and of those that are not.

    Raises ModelError if there is none.
    """
    found = [name for name, known in VAES.items() if _found(known)]
    lacking = [name for name in VAES if name not in found]
    if not found:
        raise ModelError(f"none of the known VAEs is on this machine: dladiff models fetch {' '.join(lacking)}")
    return found, lacking


def known_vae_faults(folder: Path, name: str) -> list[str]:
    """Return a message for each property in which a VAE differs from the known one. Raises ModelError."""
    have, want = read_vae(folder), VAES[name].architecture
    facts = {"kind": "class", "channels": "number of latent channels", "factor": "factor", "scaling": "scaling factor"}
    return [
        f"the VAE's {label} is {getattr(have, fact)}, that of {name} is {getattr(want, fact)}"
        for fact, label in facts.items()
        if getattr(have, fact) != getattr(want, fact)
    ]


def vae_profile_fault(profile: str, model: str) -> str | None:
    """Return what to do if the profile `tiny` is used with a VAE of another architecture, else None.

    Raises ModelError for a VAE that is missing or not supported.
    """
    if profile != "tiny" or model == "embedded" or read_vae(locate_vae(model)) == read_vae(EMBEDDED / "vae"):
        return None
    return (
        f"profile: resolution, schedule and encoders of tiny suit only the embedded model, and {model} is another; set "
        f"profile to one of {', '.join(MODELS)}, beside method.model"
    )


def resolution_fault(name: str, factor: int, resolution: int) -> str | None:
    """Return what to do if pictures of a resolution are no whole number of latent cells, else None."""
    if resolution % factor == 0:
        return None
    return f"resolution: {resolution} px is no multiple of {factor} px, a latent cell of {name}"


def _found(known: KnownVae) -> Path | None:
    """Return the folder of a known VAE: fetched by itself, or in a model that is here."""
    own = on_disk(fetched_folder(known.name), CONFIG)
    whole = (on_disk(fetched_folder(profile), CONFIG) for profile in known.profiles)
    root = own or next((folder for folder in whole if folder), None) or here(CONFIG, *known.ids)
    return root / "vae" if root else None
