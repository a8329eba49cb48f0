"""EvaluateConfig: what `dladiff evaluate` attacks, how, and what judges it; checked at once."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dladiff.errors import ConfigError, ModelError
from dladiff.evaluation.attacks import ATTACKS
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS
from dladiff.faces import packs
from dladiff.settings.merge import nearest
from pipeline.models.fingerprint import faces, fingerprint
from pipeline.process.private import chosen_umask
from pipeline.storage.open import address_fault

VERSION = 2  # of what a row measures; raised when that changes, so that older rows are done again
DERIVED = ("clean", "noise")
"""Conditions that need no run of their own: the originals, and random signs as strong as the main run's protection."""
ENCODER_ONLY = "encoder_only"
PROMPTS = ("a photo of sks person", "a dslr portrait of sks person")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
LEAST = {"count": 1, "photos": 1, "kept": 0, "cpus": 1, "gpus": 0, "max_starts": 1, "actors": 1, "identities": 1}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of one evaluation."""

    output: str
    """The run whose protection is judged."""
    results: str
    """Folder or s3://bucket/prefix that receives rows, faces and tables."""
    inputs: tuple[str, ...] = ()
    """Folders, bucket prefixes or index files of the run's photos: originals are read below them and nowhere else;
    none: what the output says its input was."""
    name: str = "dladiff"
    """Name of that run's method in the tables."""
    compare: dict[str, str] = field(default_factory=dict)
    """Name to run of each compared method; runs of the same photos."""
    references: str | None = None
    """Folder or bucket with a folder of clean photos an identity; None: set A and C, or further originals."""
    attacks: tuple[str, ...] = ("dreambooth", "lora", "ip_adapter_faceid")
    """Attackers; `encoder_only` always runs."""
    preprocessings: tuple[str, ...] = ("none",)
    """What the thief does first; NAME=FOLDER gives a purifier its weights."""
    prompts: tuple[str, ...] = PROMPTS
    """Prompts of generation."""
    bases: tuple[str, ...] = ("embedded",)
    """Base models; the first is the main one, the others are for Table 3."""
    judges: tuple[str, ...] = ("embedded:mobile", "embedded:residual")
    """Encoders of the judge; the first is held out by the tiny profile."""
    shares: tuple[int, ...] = (100,)
    """Shares of the photos that are protected, %."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the attacks."""
    count: int = 16
    """Images a prompt."""
    photos: int = 4
    """Most photos of an identity that the thief has."""
    identities: int | None = None
    """Most identities, in the order of their names."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of attacks that differ from their defaults."""
    features: str | None = None
    """Inception as an ONNX file; None: a bundled encoder's features, named so."""
    fiqa: str | None = None
    """Face-quality network as an ONNX file."""
    lpips: str | None = None
    """LPIPS with its backbone as an ONNX file."""
    kept: int = 8
    """Faces kept of each prompt and row, for contact sheets and MOS."""
    cpus: int = 1
    """CPUs an actor reserves; also its torch threads."""
    gpus: float = 0
    """GPUs an actor reserves."""
    actors: int | None = None
    """Most actors."""
    max_starts: int = 4
    """Starts of a row without an end before it counts as failed."""
    umask: str = field(default_factory=chosen_umask)
    """Rights that new files of local results do not get, in octal: that of `DLADIFF_UMASK`."""

    def __post_init__(self) -> None:
        """Raise ConfigError with every fault."""
        given = {name: value for name in LEAST if (value := getattr(self, name)) is not None}
        faults = [f"{name}: {value} is less than {LEAST[name]}" for name, value in given.items() if value < LEAST[name]]
        faults += [f"--share: {share} is outside 1..100" for share in self.shares if not 1 <= share <= 100]
        places = {"--output": self.output, "--results": self.results}
        places |= {f"--compare {name}": uri for name, uri in self.compare.items()}
        if self.references is not None:
            places["--references"] = self.references
        places |= {f"--input {uri}": uri for uri in self.inputs}
        faults += [f"{option}: {fault}" for option, uri in places.items() if (fault := address_fault(uri))]
        for name in (self.name, *self.compare):
            if not NAME.fullmatch(name) or name in DERIVED:
                faults.append(f"--compare: {name!r} is no name of a method: letters, digits, _ . -, not clean or noise")
        if self.name in self.compare:
            faults.append(f"--compare: {self.name!r} is the name of the run itself; choose another (or --name)")
        faults += _unknown("--attack", (*self.attacks, *self.settings), [*ATTACKS, ENCODER_ONLY])
        ways = (way.partition("=")[0] for way in self.preprocessings)
        faults += _unknown("--preprocessing", ways, list(PREPROCESSINGS))
        for name in ("attacks", "preprocessings", "prompts", "bases", "judges", "shares", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                faults.append(f"{name}: expected one or more, each once, not {list(values)}")
        if faults:
            raise ConfigError(faults)

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
            "judges": [faces(name) for name in self.judges],
            **{name: fingerprint(getattr(self, name) or "") for name in ("features", "fiqa", "lpips")},
            "prompts": list(self.prompts),
            "count": self.count,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        out: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return out


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
            needs = PREPROCESSINGS[name].needs or "a model"
            faults.append(f"--preprocessing: nothing at {folder}: name the folder of {needs}")
        elif not given and (needs := PREPROCESSINGS[name].needs):
            faults.append(f"--preprocessing: {name} needs weights: {name}=FOLDER of {needs}")
    faults += [f"--base: nothing at {b}: name a folder" for b in config.bases if fingerprint(b) == b]
    return faults


def _unknown(option: str, names: Iterable[str], known: list[str]) -> list[str]:
    return [
        f"{option}: {name!r} is unknown{nearest(name, known)}; known: {', '.join(known)}"
        for name in names
        if name not in known
    ]


def from_dict(values: Mapping[str, Any]) -> EvaluateConfig:
    """Return the configuration of `to_dict`."""
    plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return EvaluateConfig(**plain)
