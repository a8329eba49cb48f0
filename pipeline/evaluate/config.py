"""EvaluateConfig: the settings of `dladiff evaluate`, checked together."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from dladiff.errors import ModelError
from dladiff.evaluation.attacks import ATTACKS, ENCODER_ONLY
from dladiff.evaluation.paper_tables import PROMPTS
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS
from dladiff.faces import packs
from dladiff.faces.weights import missing_weights
from dladiff.settings.adapters import PREFIX, expanded
from dladiff.settings.merge import nearest
from dladiff.settings.validate import FaultsError, Items, Settings, T, unless
from pipeline.config import Address, Umask
from pipeline.models.fingerprint import SHIPPED, faces, fingerprint
from pipeline.process.private import chosen_umask
from pipeline.storage.open import address_fault

VERSION = 2
"""Version of the measurements, part of each row's key. Raise it when they change, so that older rows run again."""
DERIVED = ("clean", "noise")
"""Conditions without a run: the originals, and random-sign noise with the main run's mean squared error."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


def _unique_fault(values: tuple[Any, ...]) -> str | None:
    unique = values and len(set(values)) == len(values)
    return None if unique else f"expected one or more, each once, not {list(values)}"


def _repeated_fault(values: tuple[str, ...]) -> str | None:
    names = [value.partition("=")[0] for value in values]
    return None if len(set(names)) == len(names) else f"expected each name once, not {list(values)}"


def _name_fault(name: str) -> str | None:
    if NAME.fullmatch(name) and name not in DERIVED:
        return None
    return f"{name!r} cannot name a method: use letters, digits, _ . -, and neither clean nor noise"


UniqueItems = Annotated[Items[T], unless(_unique_fault)]
"""One or more values, each once."""


def encoder_name(evaluator: str) -> str:
    """Return the name that an encoder of the evaluator has in the tables: `service.named_encoder` gives the same."""
    if evaluator.startswith(PREFIX):
        return evaluator.removeprefix(PREFIX)
    name = Path(evaluator.removeprefix(SHIPPED).removeprefix(packs.CLIP)).name
    return name.removesuffix(".onnx")


class EvaluateConfig(Settings):
    """Settings of one evaluation."""

    RENAMED: ClassVar[dict[str, str]] = {"judges": "evaluators"}

    output: Address = Field(title="--output")
    """The run under test."""
    results: Address = Field(title="--results")
    """Folder or s3://bucket/prefix for rows, faces and tables."""
    inputs: Items[str] = ()
    """Folders, bucket prefixes or index files of the run's photos. Originals are read below them and nowhere else.
    Empty: the input that the output records."""
    name: Annotated[str, unless(_name_fault)] = Field(default="dladiff", title="--name")
    """Name of the method under test in the tables."""
    compare: dict[str, str] = Field(default_factory=dict)
    """Name of each compared method to its run on the same photos."""
    references: Address | None = Field(default=None, title="--references")
    """Folder or bucket with a folder of clean photos for each identity. None: sets A and C, or further originals."""
    attacks: UniqueItems[str] = ("dreambooth", "lora", "ip_adapter_faceid")
    """Attacks; `encoder_only` always runs."""
    preprocessings: UniqueItems[str] = ("none",)
    """Preprocessings of the photos before an attack; NAME=FOLDER or NAME=FILE names a purifier's weights."""
    rescores: Annotated[Items[str], unless(_repeated_fault)] = ()
    """Preprocessings of the generated pictures, after which they are scored a second time; weights as above."""
    prompts: UniqueItems[str] = PROMPTS
    """Prompts of the generated pictures."""
    bases: UniqueItems[str] = ("embedded",)
    """Base models of the attacker: first the main one, then those of Table 3."""
    evaluators: Annotated[UniqueItems[str], AfterValidator(expanded)] = ("embedded:mobile", "embedded:residual")
    """Identity encoders of the evaluator; `adapter:NAME` is each reading of an identity adapter. Of the defaults, the
    tiny profile holds out the first."""
    thresholds: dict[str, Annotated[float, Field(ge=-1, le=1)]] = Field(default_factory=dict, title="--threshold")
    """Name of an encoder of the evaluator to the smallest cosine that verifies a person."""
    calibrations: Items[str] = Field(default=(), title="--calibration")
    """Files of `dladiff calibrate` with the thresholds of encoders."""
    shares: UniqueItems[Annotated[int, Field(ge=1, le=100)]] = Field(default=(100,), title="--share")
    """Percentages of an identity's photos that are protected."""
    seeds: UniqueItems[int] = (0,)
    """Seeds of the attacks."""
    count: int = Field(default=16, ge=1)
    """Generated pictures per prompt."""
    photos: int = Field(default=4, ge=1)
    """Maximum number of photos of an identity that the attacker has."""
    identities: int | None = Field(default=None, ge=1)
    """Maximum number of identities, in the order of their names. None: all."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings that differ from an attack's defaults, by attack."""
    features: str | None = None
    """Inception as an ONNX file, for FID. None: the features of a bundled encoder."""
    fiqa: str | None = None
    """Face-quality network as an ONNX file."""
    lpips: str | None = None
    """LPIPS, backbone and heads, as an ONNX file."""
    kept: int = Field(default=8, ge=0)
    """Pictures stored per prompt and row, for contact sheets and MOS."""
    cpus: int = Field(default=1, ge=1)
    """CPUs that an actor reserves; also its number of torch threads."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that an actor reserves."""
    actors: int | None = Field(default=None, ge=1)
    """Maximum number of actors. None: as many as the machine or cluster holds."""
    max_starts: int = Field(default=4, ge=1)
    """Starts of a row without an end before the row counts as failed."""
    umask: Umask = Field(default_factory=chosen_umask)
    """Permissions that new files of local results do not get, in octal; the default is `DLADIFF_UMASK`."""

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
            faults.append(f"--compare: {own!r} is the name of the method under test; choose another name (or --name)")
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
        _known("--preprocessing", [name.partition("=")[0] for name in names], list(PREPROCESSINGS))
        return names

    @field_validator("rescores")
    @classmethod
    def _rescores(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _known("--rescore", [name.partition("=")[0] for name in names], [p for p in PREPROCESSINGS if p != "none"])
        return names

    @field_validator("thresholds")
    @classmethod
    def _encoders(cls, thresholds: dict[str, float], given: ValidationInfo) -> dict[str, float]:
        _known("--threshold", thresholds, [encoder_name(name) for name in given.data.get("evaluators", ())])
        return thresholds

    @property
    def runs(self) -> dict[str, str]:
        """Method to run, with the method under test last, as in the paper's tables."""
        return {**self.compare, self.name: self.output}

    @property
    def conditions(self) -> tuple[str, ...]:
        """Every condition, in the order of the tables."""
        return (*DERIVED, *self.runs)

    def digest_parts(self) -> dict[str, Any]:
        """Return the parts that all rows' keys share; weights enter by content, so that their path does not matter."""
        return {
            "version": VERSION,
            "tiny": fingerprint("embedded", frozenset()) if "embedded" in self.bases else "",
            "judges": [faces(name) for name in self.evaluators],  # the old name: a new one would change every key
            **{name: fingerprint(getattr(self, name) or "") for name in ("features", "fiqa", "lpips")},
            "prompts": list(self.prompts),
            "count": self.count,
        }


def missing(config: EvaluateConfig) -> list[str]:
    """Return one line for each model in the settings that this machine does not have."""
    faults = []
    if fault := missing_weights(config.evaluators):
        faults.append(f"--evaluator: {fault}")
    for encoder in config.evaluators:
        if encoder.startswith(PREFIX):
            continue
        try:
            if fingerprint(encoder) == encoder:  # neither a file, a folder nor a bundled encoder
                packs.located(encoder)
        except ModelError as error:
            faults.append(f"--evaluator: {error}")
    given = [("--preprocessing", p) for p in config.preprocessings] + [("--rescore", p) for p in config.rescores]
    for option, preprocessing in given:
        name, has_folder, folder = preprocessing.partition("=")
        if has_folder and not Path(folder).exists():
            record = PREPROCESSINGS[name]
            faults.append(f"{option}: nothing at {folder}: name the {record.place} of {record.needs or 'a model'}")
        elif not has_folder and (needs := PREPROCESSINGS[name].needs):
            place = PREPROCESSINGS[name].place.upper()
            faults.append(f"{option}: {name} needs weights: {name}={place} of {needs}")
    faults += [f"--base: nothing at {b}: name a folder" for b in config.bases if fingerprint(b) == b]
    return faults


def _known(option: str, names: Collection[str], known: list[str]) -> Collection[str]:
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(known)
        raise FaultsError(f"{option}: {name!r} is unknown{nearest(name, known)}; known: {listed}" for name in unknown)
    return names
