"""The weights that identity adapters read with: file, licence, origin, and where they are on this machine.

Imports no torch: the driver uses it. Nothing is downloaded.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dladiff.diffusion.catalogue import models_folder
from dladiff.errors import ModelError
from dladiff.faces import packs
from dladiff.settings.adapters import PREFIX, reading_of

FETCHED = "encoder:"
"""Start of the name by which `dladiff models` fetches, checks and mirrors weights (`encoder:clip-vit-h`)."""
CONVERT = "python -m dladiff.faces.convert_encoder"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Published weights of an encoder."""

    name: str
    file: str
    """Name of the file or folder here. A folder is an InsightFace pack or one saved by transformers."""
    licence: str
    place: str
    """Where they are published."""
    pickle: str = ""
    """Name of the published file where it is a pickle, which is converted once and never loaded by a run."""

    @property
    def folder(self) -> bool:
        """Whether the weights are a folder."""
        return not self.file.endswith(".safetensors")

    def wanted(self) -> str:
        """Return the file, its licence and origin, for a message."""
        kind = f"{self.file}/" if self.folder else self.file
        converted = f", converted by {CONVERT} {self.pickle} {self.file}" if self.pickle else ""
        return f"{kind} (licence {self.licence}; from {self.place}{converted})"


_INSIGHTFACE = "github.com/deepinsight/insightface releases, model zoo"
_NON_COMMERCIAL = "InsightFace: non-commercial research"

WEIGHTS: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(name="buffalo_l", file="buffalo_l", licence=_NON_COMMERCIAL, place=f"{_INSIGHTFACE}, buffalo_l.zip"),
        Weights(name="antelopev2", file="antelopev2", licence=_NON_COMMERCIAL, place=f"{_INSIGHTFACE}, antelopev2.zip"),
        Weights(
            name="clip-vit-h",
            file="clip-vit-h",
            licence="Apache-2.0; the same weights as laion/CLIP-ViT-H-14-laion2B-s32B-b79K, MIT",
            place="huggingface.co/h94/IP-Adapter, folder models/image_encoder",
        ),
        Weights(
            name="clip-vit-l",
            file="clip-vit-l",
            licence="not stated on the model card; OpenAI's code is MIT",
            place="huggingface.co/openai/clip-vit-large-patch14",
        ),
        Weights(
            name="siglip-so400m-384",
            file="siglip-so400m-384",
            licence="Apache-2.0",
            place="huggingface.co/google/siglip-so400m-patch14-384",
        ),
        Weights(
            name="photomaker-v2",
            file="photomaker-v2.safetensors",
            licence="Apache-2.0",
            place="huggingface.co/TencentARC/PhotoMaker-V2",
            pickle="photomaker-v2.bin",
        ),
        Weights(
            name="eva02-clip-l-336",
            file="EVA02_CLIP_L_336_psz14_s6B.safetensors",
            licence="MIT",
            place="huggingface.co/QuanSun/EVA-CLIP",
            pickle="EVA02_CLIP_L_336_psz14_s6B.pt",
        ),
        Weights(
            name="parsing-bisenet",
            file="parsing_bisenet.safetensors",
            licence="MIT (facexlib); trained on CelebAMask-HQ, non-commercial research",
            place="github.com/xinntao/facexlib releases, v0.2.0",
            pickle="parsing_bisenet.pth",
        ),
        Weights(
            name="arcface-ir-se50",
            file="recognition_arcface_ir_se50.safetensors",
            licence="MIT (facexlib); the terms of its training data are not stated",
            place="github.com/xinntao/facexlib releases, v0.1.0",
            pickle="recognition_arcface_ir_se50.pth",
        ),
        Weights(
            name="curricularface-r101",
            file="glint360k_curricular_face_r101_backbone.safetensors",
            licence="see its model card; trained on Glint360K, non-commercial research",
            place="huggingface.co/Junjie96/UniPortrait",
            pickle="glint360k_curricular_face_r101_backbone.bin",
        ),
    )
}
"""Known weights by name."""


def needed_by(encoders: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the weights that the adapters among these encoders need, each with the adapters."""
    out: dict[str, list[str]] = {}
    for encoder in encoders:
        if encoder.startswith(PREFIX):
            reading, adapter = reading_of(encoder), encoder.removeprefix(PREFIX).partition(".")[0]
            for name in filter(None, (reading.weights, reading.mask)):
                if adapter not in out.setdefault(name, []):
                    out[name].append(adapter)
    return out


def fetched_weights(name: str) -> Path:
    """Return the folder that `dladiff models fetch` uses for weights; it may not exist."""
    return models_folder() / f"{FETCHED.rstrip(':')}--{name}"


def find(name: str) -> Path | None:
    """Return the file or folder of known weights on this machine, or None.

    Searched are the folders of InsightFace packs (DLADIFF_FACES, then InsightFace's own), then the fetched weights.
    """
    known, fetched = WEIGHTS[name], fetched_weights(name)
    if not known.folder:
        files = (folder / known.file for folder in (*packs.folders(), fetched))
        return next((file for file in files if file.is_file()), None)
    for folder in (*(folder / known.file for folder in packs.folders()), fetched):
        if found := packs.pack(folder):
            return found
        if (folder / "config.json").is_file():
            return folder
    return None


def located(name: str) -> Path:
    """Return the result of `find`. Raises ModelError: not here; names file, licence and origin."""
    if path := find(name):
        return path
    raise ModelError(f"not on this machine: {WEIGHTS[name].wanted()}; {_put()}")


def missing_weights(encoders: Iterable[str], stored: Callable[[str], bool] = lambda name: False) -> str | None:
    """Return one line with every file that adapters among these encoders need and this machine lacks, else None.

    `stored`: whether weights are elsewhere, from where the run copies them.
    """
    needed = needed_by(encoders)
    lacking = {name: adapters for name, adapters in needed.items() if find(name) is None and not stored(name)}
    if not lacking:
        return None
    named = list(dict.fromkeys(adapter for adapters in lacking.values() for adapter in adapters))
    files = ", ".join(WEIGHTS[name].wanted() for name in lacking)
    needs = "adapters " + ", ".join(named) + " need" if len(named) > 1 else f"adapter {named[0]} needs"
    return f"{needs} what is not on this machine: {files}; {_put()}"


def _put() -> str:
    folders = " or ".join(str(folder) for folder in packs.folders()) or f"the folder that {packs.VARIABLE} names"
    return (
        f"put it in {folders}, or give --encoders-from URI, where dladiff models mirror encoder:NAME URI/NAME has put "
        "it; a run downloads nothing else"
    )
