"""RunConfig: the settings of a run, from YAML and the command line, checked together."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, field_validator

from dladiff.errors import ConfigError
from dladiff.settings.adapters import PREFIX, adapter_fault
from dladiff.settings.merge import digest, merge, nearest
from dladiff.settings.presets import STRENGTHS
from dladiff.settings.schema import MethodConfig, encoder_fault, method_config
from dladiff.settings.validate import FaultsError, Items, Settings, unless
from pipeline.models.fingerprint import by_content, missing
from pipeline.process.private import chosen_umask, octal, umask_fault
from pipeline.records.allowance import allowance_fault
from pipeline.sources.layouts import LayoutName
from pipeline.sources.share import shard_fault
from pipeline.storage.base import MAX_OBJECT, S3_OPTIONS
from pipeline.storage.keys import shown
from pipeline.storage.open import address_fault

FILES_AT_ONCE = 4
"""Files of `max_photo_bytes` that `max_task_bytes` must hold, because one file is in memory up to three times."""


def _root_fault(folder: str) -> str | None:
    """Check a folder's spelling. Its existence is checked when the index is read: it may be a folder of a cluster."""
    if not folder or folder.startswith("s3://"):
        return f"expected a folder, not {folder!r}"
    return address_fault(folder)


def _gpus_fault(number: float) -> str | None:
    return f"{number} is neither a part of one GPU nor a whole number of GPUs" if number > 1 and number % 1 else None


Address = Annotated[str, unless(address_fault)]
"""A folder or s3://bucket/prefix."""
Umask = Annotated[
    str, BeforeValidator(lambda given: octal(given) if type(given) is int else given), unless(umask_fault)
]
"""Two octal digits. A number is converted, because YAML reads 027 without quotes as one."""
MaxFailed = Annotated[
    str, BeforeValidator(lambda given: str(given) if type(given) is int else given), unless(allowance_fault)
]
"""A number of photos (5) or a share of them (1%)."""
if TYPE_CHECKING:
    Strength = str
else:
    Strength = Literal[tuple(STRENGTHS)]
"""Name of a strength."""
SAME_CHOICE = ("strength", "preset")
"""Settings that choose a preset. One on a higher layer (an option, a tenant) replaces the other on a lower one."""


class RunConfig(Settings):
    """Settings of one run, built and checked by `run_config`."""

    input: Address
    """Folder or s3://bucket/prefix of the photos, or one file: an index (.csv, .jsonl, .parquet) that names them, or a
    .parquet or .tar file that holds them."""
    output: Address
    """Folder or s3://bucket/prefix for photos, records and manifest."""
    profile: str = "tiny"
    """Profile of the method."""
    preset: str | None = None
    """Changes to the profile: the paper's method, an ablation, or a strength; None: the profile as it is."""
    strength: Strength | None = None
    """How visible the protection may be: the preset of this name. `docs/evaluation.md` ("Strength") has what each
    protects. Give `strength` or `preset`, not both."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of every random stream."""
    layout: LayoutName = "auto"
    """Grouping of photos into identities."""
    lists: Address | None = None
    """Folder or s3://bucket/prefix of a collection's lists, if they are not in the folder of the photos."""
    allow_roots: Items[Annotated[str, unless(_root_fault)]] = ()
    """Folders of this machine in which an index file may name photos, besides its own folder."""
    one_identity: bool = False
    """Treat all photos as one identity; the same as layout `one`."""
    limit: int | None = Field(default=None, ge=1)
    """Maximum number of identities to plan, in the order of their names; None: all."""
    shard: Annotated[str, unless(shard_fault)] | None = None
    """Part of the identities to plan, by a hash of their names, as `3/8`; each into an output of its own. None: all."""
    method: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method that differ from the profile: fields of dladiff.settings.schema.MethodConfig."""
    faces: Items[str] = ()
    """InsightFace pack folders: the encoders to protect against; the first pack's detector is used."""
    against: Items[Annotated[str, unless(adapter_fault)]] = ()
    """Identity adapters to protect against, besides `faces` or `method.encoders` (docs/encoders.md, "Adapters")."""
    encoders_from: Address | None = None
    """Folder or s3://bucket/prefix of adapters' weights that a worker lacks; `models mirror` writes them."""
    max_pixels: int = Field(default=50_000_000, ge=4096, le=2**31 - 1)
    """Maximum number of pixels (width times height) of a photo."""
    max_photo_bytes: int = Field(default=200_000_000, ge=1024, le=MAX_OBJECT)
    """Maximum size of a photo's file, bytes; larger files are not read. Uncompressed, 50 megapixels are 150 MB."""
    max_photo_seconds: float = Field(default=60, ge=1, le=86400)
    """Maximum time to decode one photo, s. 50 megapixels take about 3; busy machines need more."""
    max_scans: int = Field(default=100, ge=1, le=2**16)
    """Maximum number of scans of a JPEG. Encoders write about 10, and each costs a pass over all pixels."""
    max_task_bytes: int = Field(default=16 * 2**30, ge=4096, le=2**50)
    """Bytes of memory for the photos of one task; photos beyond it are protected in further groups. The default holds
    64 photos of 12 megapixels or 8 of 50 (docs/decisions/0012-bounded-photos.md)."""
    cpus_per_actor: int = Field(default=1, ge=1)
    """CPUs that an actor reserves; without a GPU also its number of torch threads."""
    gpus_per_actor: Annotated[float, unless(_gpus_fault)] = Field(default=0, ge=0)
    """GPUs that an actor reserves: 0 for none, a fraction to share one. The default for a full-size model is 1."""
    min_actors: int = Field(default=1, ge=1)
    """Number of actors at the start."""
    max_actors: int | None = Field(default=None, ge=1)
    """Maximum number of actors; None: as many as the machine or cluster holds."""
    max_starts: int = Field(default=4, ge=1)
    """Starts of an identity without an end before it is quarantined."""
    max_failed: MaxFailed | None = None
    """Photos of this run that may fail while its exit code is 0: a number, or a share of what was new (`1%`). Failures
    of earlier runs then no longer count. None: any failure, of earlier runs too, is exit code 1. Job files have `100%`:
    what can be done is done, and failures are reported, not tried again on new clusters."""
    max_photos_per_task: int = Field(default=64, ge=1)
    """Photos of one identity that one task protects, with the same surrogates. An identity with more becomes several
    tasks. It is part of a task's key and not of the digest, so identities with fewer photos do not run again."""
    patience_s: float = Field(default=300, ge=0, le=7 * 86400)
    """Seconds of retries while storage is overloaded or out of reach."""
    s3: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Attributes of objects in an output bucket: server_side_encryption, kms_key_id, storage_class."""
    trace: bool = False
    """Store the losses and similarities of every step in `traces/`, for `dladiff report` and `dladiff explain`."""
    umask: Umask = Field(default_factory=chosen_umask)
    """Permissions that new files and folders of a local output do not get, in octal: with '077' only the owner has
    access, with '027' the group can read. The default is `DLADIFF_UMASK`, which all commands use."""
    protector: str = "dladiff.service:Protector"
    """module:class of the method; not an option of the command line."""

    @field_validator("s3")
    @classmethod
    def _known_options(cls, given: dict[str, str]) -> dict[str, str]:
        if unknown := given.keys() - S3_OPTIONS.keys():
            raise FaultsError(
                f"s3.{name}: unknown setting{nearest(name, list(S3_OPTIONS))}" for name in sorted(unknown)
            )
        return given

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if self.max_actors is not None and self.max_actors < self.min_actors:
            yield f"max_actors: {self.max_actors} is less than min_actors = {self.min_actors}"
        if self.max_task_bytes < (minimum := FILES_AT_ONCE * self.max_photo_bytes):
            yield f"max_task_bytes: {self.max_task_bytes} is less than {FILES_AT_ONCE} x max_photo_bytes = {minimum}"
        if self.one_identity and self.layout not in ("auto", "one"):
            yield f"one_identity: contradicts layout: {self.layout}; give one of them"
        if self.strength is not None and self.preset is not None:
            yield f"strength: {self.strength} and preset: {shown(self.preset)} contradict; give one of them"

    def method_settings(self) -> dict[str, Any]:
        """Return the arguments of the protector as plain JSON values: profile, preset, overrides, trace, gpu."""
        overrides = dict(self.method)
        if self.faces:
            overrides.setdefault("encoders", list(self.faces))
            overrides.setdefault("detector", self.faces[0])
        named = overrides.get("encoders", [])
        if self.against and isinstance(named, list | tuple):
            overrides["encoders"] = [*named, *(f"{PREFIX}{name}" for name in self.against)]
        settings = {"profile": self.profile, "preset": self.strength or self.preset, "overrides": overrides}
        if self.encoders_from:
            settings["encoders_from"] = self.encoders_from
        return settings | {"trace": self.trace, "gpu": self.gpus_per_actor > 0}

    def method_config(self) -> MethodConfig:
        """Return the method's configuration. Raises ConfigError."""
        settings = self.method_settings()
        return method_config(settings["profile"], settings["preset"], settings["overrides"])

    def layer_settings(self, *, faces: bool) -> dict[str, str]:
        """Return the settings of the layers that run on a photo, as JSON by manifest column; layer 2 needs `faces`."""
        config = self.method_config()
        method = config.to_dict()
        if method["visibility"] and method["protection"] == "dladiff":
            used = {"visibility": method["visibility"], "layers": method["layers"], **method["joint"]}
            together = {"joint_layers": json.dumps(used | ({"zero_shot": method["zero_shot"]} if faces else {}))}
            first = {"finetuning_layer": json.dumps(method["finetuning"])} if config.trains_surrogate else {}
            return first | together
        runs = {"finetuning": method["layers"] != "zero_shot", "zero_shot": method["layers"] != "finetuning" and faces}
        return {f"{layer}_layer": json.dumps(method[layer]) for layer, applies in runs.items() if applies}

    def config_digest(self) -> str:
        """Return the digest of the settings that affect the output's bytes; weights enter by content."""
        method = by_content(self.method_config(), self.encoders_from)
        return digest({"method": method, "seed": self.seed, "max_pixels": self.max_pixels})

    def missing_weights(self) -> list[str]:
        """Return one line for each missing need of a run: encoders that no setting names, models not on this machine.

        With RAY_ADDRESS models are not checked, because the workers read them. Raises StorageError: a model's bucket is
        out of reach.
        """
        method = self.method_config()
        unnamed = [fault] if (fault := encoder_fault(method)) else []
        if os.environ.get("RAY_ADDRESS"):
            return unnamed
        lacking = missing(method, self.encoders_from)
        return unnamed + [f"{fault}; or name a cluster that has it in RAY_ADDRESS" for fault in lacking]

    def layout_name(self) -> str:
        """Return the layout, with `one_identity` applied."""
        return "one" if self.one_identity else self.layout


def run_config(file: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Build the configuration from a YAML file, if any, and `overrides`, which take precedence unless they are None.

    Raises ConfigError with every fault of the run and the method: unknown names, types, ranges.
    """
    values = read_yaml(file) if file else {}
    overrides = {key: value for key, value in overrides.items() if value is not None and value != ()}
    method = {"protection": overrides.pop("protection", None)}  # options of the command, in YAML settings of the method
    output = {name: overrides.pop(name, None) for name in ("format", "opt_out")}
    if isinstance(values.get("output"), dict):  # in YAML, `output` may also hold the file format
        output = values.pop("output") | {name: value for name, value in output.items() if value is not None}
    method["output"] = {name: value for name, value in output.items() if value is not None} or None
    values = without_replaced(values, overrides) | overrides
    if isinstance(values.get("method") or {}, dict) and any(method.values()):
        values["method"] = dict(values.get("method") or {})
        merge(values["method"], {name: value for name, value in method.items() if value})
    config, faults = load_run(values)
    if config is None:
        missing = {f"{key}: is missing": f"; give --{key} URI" for key in ("input", "output")}
        raise ConfigError([fault + missing.get(fault, "") for fault in faults])
    return config


def without_replaced(values: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that `above` replaces under another name (SAME_CHOICE)."""
    replaced = SAME_CHOICE if any(above.get(name) is not None for name in SAME_CHOICE) else ()
    return {name: value for name, value in values.items() if name not in replaced}


def load_run(values: Mapping[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """Return the configuration of plain values, or None and one line per fault. An empty address counts as missing."""
    values = {key: value for key, value in values.items() if value or key not in ("input", "output", "lists")}
    config, faults = RunConfig.load(values)
    wrong = {re.split(r"[.\[:]", fault)[0] for fault in faults}
    parts = {key: values[key] for key in ("profile", *SAME_CHOICE, "method", "faces") if key in values.keys() - wrong}
    try:  # check the method even if other settings are wrong
        method = (config or RunConfig.model_construct(None, **parts)).method_config()
    except ConfigError as error:
        return None, faults + error.faults
    if config and method.model != "embedded" and "gpus_per_actor" not in values:
        config = config.replaced(gpus_per_actor=1)
    return config, faults


def read_yaml(file: Path, expected: str = "settings (name: value)", hint: str = "") -> dict[str, Any]:
    """Return the mapping in a YAML file, {} for an empty file. Raises ConfigError."""
    try:
        values, twice = _loaded(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror or error}{hint}"]) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date, or a tag of the wrong type
        raise ConfigError([f"{file}: not YAML: {' '.join(str(error).split())}"]) from error
    if twice:
        raise ConfigError([f"{file}: {fault}" for fault in twice])
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{file}: expected {expected}, not a {type(values).__name__}"])
    return values


class _Loader(yaml.SafeLoader):
    """Records repeated names of a mapping. YAML forbids them, but PyYAML silently keeps the last."""

    def __init__(self, content: str) -> None:
        super().__init__(content)
        self.twice: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check a mapping as written, before `<<` is resolved, which adds names that the mapping may override."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    self.twice.append(f"{shown(key.value)}: is there twice (lines {lines[name]} and {line}); keep one")
                lines.setdefault(name, line)
        return node


def _loaded(content: str) -> tuple[Any, list[str]]:
    """Return the value of YAML text, and a fault for each name that a mapping repeats."""
    loader = _Loader(content)
    try:
        return loader.get_single_data(), loader.twice
    finally:
        loader.dispose()
