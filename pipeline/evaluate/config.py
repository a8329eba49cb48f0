"""EvaluateConfig: what `dladiff evaluate` attacks, how, and what judges it; checked at once."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

import dladiff
from dladiff.errors import ModelError
from dladiff.evaluation.names import ATTACKS, PREPROCESSING, PURIFIERS
from dladiff.faces import packs
from dladiff.settings.merge import nearest
from dladiff.settings.validate import FaultsError, Items, Settings, T, unless
from pipeline.config import Address, Umask
from pipeline.models.fingerprint import faces, fingerprint
from pipeline.process.private import chosen_umask
from pipeline.storage.open import address_fault

VERSION = 2  # of what a row measures; raised when that changes, so that older rows are done again
DERIVED = ("clean", "noise")
"""Conditions that need no run of their own: the originals, and random signs as strong as the main run's protection."""
ENCODER_ONLY = "encoder_only"
PROMPTS = ("a photo of sks person", "a dslr portrait of sks person")
DEFAULTS = Path(dladiff.__file__).parent / "evaluation" / "attackers" / "settings.py"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


def _repeated(values: tuple[Any, ...]) -> str | None:
    good = values and len(set(values)) == len(values)
    return None if good else f"expected one or more, each once, not {list(values)}"


def _name_fault(name: str) -> str | None:
    if NAME.fullmatch(name) and name not in DERIVED:
        return None
    return f"{name!r} is no name of a method: letters, digits, _ . -, not clean or noise"


Some = Annotated[Items[T], unless(_repeated)]


class EvaluateConfig(Settings):
    """Settings of one evaluation."""

    output: Address = Field(title="--output")
    """The run whose protection is judged."""
    results: Address = Field(title="--results")
    """Folder or s3://bucket/prefix that receives rows, faces and tables."""
    inputs: Items[str] = ()
    """Folders, bucket prefixes or index files of the run's photos: originals are read below them and nowhere else;
    none: what the output says its input was."""
    name: Annotated[str, unless(_name_fault)] = Field(default="dladiff", title="--name")
    """Name of that run's method in the tables."""
    compare: dict[str, str] = Field(default_factory=dict)
    """Name to run of each compared method; runs of the same photos."""
    references: Address | None = Field(default=None, title="--references")
    """Folder or bucket with a folder of clean photos an identity; None: set A and C, or further originals."""
    attacks: Some[str] = ("dreambooth", "lora", "ip_adapter_faceid")
    """Attackers; `encoder_only` always runs."""
    preprocessings: Some[str] = ("none",)
    """What the thief does first; NAME=FOLDER gives a purifier its weights."""
    prompts: Some[str] = PROMPTS
    """Prompts of generation."""
    bases: Some[str] = ("embedded",)
    """Base models; the first is the main one, the others are for Table 3."""
    judges: Some[str] = ("embedded:mobile", "embedded:residual")
    """Encoders of the judge; the first is held out by the tiny profile."""
    shares: Some[Annotated[int, Field(ge=1, le=100)]] = Field(default=(100,), title="--share")
    """Shares of the photos that are protected, %."""
    seeds: Some[int] = (0,)
    """Seeds of the attacks."""
    count: int = Field(default=16, ge=1)
    """Images a prompt."""
    photos: int = Field(default=4, ge=1)
    """Most photos of an identity that the thief has."""
    identities: int | None = Field(default=None, ge=1)
    """Most identities, in the order of their names."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of attacks that differ from their defaults."""
    features: str | None = None
    """Inception as an ONNX file; None: a bundled encoder's features, named so."""
    fiqa: str | None = None
    """Face-quality network as an ONNX file."""
    lpips: str | None = None
    """LPIPS with its backbone as an ONNX file."""
    kept: int = Field(default=8, ge=0)
    """Faces kept of each prompt and row, for contact sheets and MOS."""
    cpus: int = Field(default=1, ge=1)
    """CPUs an actor reserves; also its torch threads."""
    gpus: float = Field(default=0, ge=0)
    """GPUs an actor reserves."""
    actors: int | None = Field(default=None, ge=1)
    """Most actors."""
    max_starts: int = Field(default=4, ge=1)
    """Starts of a row without an end before it counts as failed."""
    umask: Umask = Field(default_factory=chosen_umask)
    """Rights that new files of local results do not get, in octal: that of `DLADIFF_UMASK`."""

    @field_validator("inputs")
    @classmethod
    def _addresses(cls, uris: tuple[str, ...]) -> tuple[str, ...]:
        if faults := [f"--input {uri}: {fault}" for uri in uris if (fault := address_fault(uri))]:
            raise FaultsError(faults)
        return uris

    @field_validator("compare")
    @classmethod
    def _methods(cls, runs: dict[str, str], given: ValidationInfo) -> dict[str, str]:
        faults = [f"--compare {name}: {fault}" for name, uri in runs.items() if (fault := address_fault(uri))]
        faults += [f"--compare: {fault}" for name in runs if (fault := _name_fault(name))]
        if (own := given.data.get("name")) in runs:
            faults.append(f"--compare: {own!r} is the name of the run itself; choose another (or --name)")
        if faults:
            raise FaultsError(faults)
        return runs

    @field_validator("attacks", "settings")
    @classmethod
    def _attacks(cls, names: Collection[str]) -> Collection[str]:
        return _known("--attack", names, [*ATTACKS, ENCODER_ONLY])

    @field_validator("preprocessings")
    @classmethod
    def _preprocessings(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _known("--preprocessing", [name.partition("=")[0] for name in names], [*PREPROCESSING, *PURIFIERS])
        return names

    @property
    def runs(self) -> dict[str, str]:
        """Method to run, ours last, as the paper lays out its tables."""
        return {**self.compare, self.name: self.output}

    @property
    def conditions(self) -> tuple[str, ...]:
        """Return every condition in the order of the tables."""
        return (*DERIVED, *self.runs)

    def digest_parts(self) -> dict[str, Any]:
        """Return what every row's key covers: weights by content, whatever machine they lie on."""
        return {
            "version": VERSION,
            "tiny": fingerprint("embedded", frozenset()) if "embedded" in self.bases else "",
            "defaults": fingerprint(str(DEFAULTS)),
            "judges": [faces(name) for name in self.judges],
            **{name: fingerprint(getattr(self, name) or "") for name in ("features", "fiqa", "lpips")},
            "prompts": list(self.prompts),
            "count": self.count,
        }


def missing(config: EvaluateConfig) -> list[str]:
    """Return what the settings name and this machine does not have, a line each."""
    faults = []
    for judge in config.judges:
        try:
            if fingerprint(judge) == judge:  # neither a file, a folder nor one that ships
                packs.located(judge)
        except ModelError as error:
            faults.append(f"--judge: {error}")
    for way in config.preprocessings:
        name, given, folder = way.partition("=")
        if given and not Path(folder).exists():
            faults.append(
                f"--preprocessing: nothing at {folder}: name the folder of {PURIFIERS.get(name) or 'a model'}"
            )
        elif not given and PURIFIERS.get(name):
            faults.append(f"--preprocessing: {name} needs weights: {name}=FOLDER of {PURIFIERS[name]}")
    faults += [f"--base: nothing at {b}: name a folder" for b in config.bases if fingerprint(b) == b]
    return faults


def _known(option: str, names: Collection[str], known: list[str]) -> Collection[str]:
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(known)
        raise FaultsError(f"{option}: {name!r} is unknown{nearest(name, known)}; known: {listed}" for name in unknown)
    return names
