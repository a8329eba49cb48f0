"""RunConfig: every setting of a run, from YAML and the command line, checked at once."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dladiff.errors import ConfigError
from dladiff.settings.merge import digest, nearest
from dladiff.settings.schema import MethodConfig, method_config
from pipeline.models.fingerprint import by_content, missing
from pipeline.process.private import chosen_umask, octal, umask_fault
from pipeline.sources.layouts import LAYOUTS
from pipeline.storage.base import MAX_OBJECT, S3_OPTIONS
from pipeline.storage.keys import shown
from pipeline.storage.open import address_fault

FILES_AT_ONCE = 4  # files of max_photo_bytes that max_task_bytes holds: one is in memory up to three times
_TYPES: dict[str, tuple[type, ...]] = {
    "input": (str,),
    "output": (str,),
    "profile": (str,),
    "preset": (str, type(None)),
    "seed": (int,),
    "layout": (str,),
    "one_identity": (bool,),
    "limit": (int, type(None)),
    "method": (dict,),
    "faces": (list, tuple),
    "max_pixels": (int,),
    "max_photo_bytes": (int,),
    "max_photo_seconds": (int, float),
    "max_scans": (int,),
    "max_task_bytes": (int,),
    "cpus_per_actor": (int,),
    "gpus_per_actor": (int, float),
    "min_actors": (int,),
    "max_actors": (int, type(None)),
    "max_starts": (int,),
    "max_photos_per_task": (int,),
    "patience_s": (int, float),
    "lists": (str, type(None)),
    "allow_roots": (list, tuple),
    "s3": (dict,),
    "trace": (bool,),
    "umask": (str, int),
    "protector": (str,),
}
_LEAST = {
    "seed": 0,
    "limit": 1,
    "max_pixels": 4096,
    "max_photo_bytes": 1024,
    "max_photo_seconds": 1,
    "max_scans": 1,
    "max_task_bytes": FILES_AT_ONCE * 1024,
    "cpus_per_actor": 1,
    "gpus_per_actor": 0,
    "min_actors": 1,
    "max_actors": 1,
    "max_starts": 1,
    "max_photos_per_task": 1,
    "patience_s": 0,
}
_MOST = {
    "seed": 2**63 - 1,
    "max_pixels": 2**31 - 1,
    "max_photo_bytes": MAX_OBJECT,
    "max_photo_seconds": 86400,
    "max_scans": 2**16,
    "max_task_bytes": 2**50,
    "patience_s": 7 * 86400,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of one run; `run_config` builds and checks it."""

    input: str
    """Folder or s3://bucket/prefix of the photos, or an index file (.csv, .parquet) that names them."""
    output: str
    """Folder or s3://bucket/prefix that receives photos, records and manifest."""
    profile: str = "tiny"
    """Profile of the method."""
    preset: str | None = None
    """Schedule of the method; None is the profile's own."""
    seed: int = 0
    """Seed of every random stream."""
    layout: str = "auto"
    """How photos become identities."""
    lists: str | None = None
    """Folder or s3://bucket/prefix of a collection's own lists, where they do not lie beside the photos."""
    allow_roots: tuple[str, ...] = ()
    """Folders of this machine in which an index file may name photos, beside its own folder."""
    one_identity: bool = False
    """All photos are one identity: the same as layout `one`."""
    limit: int | None = None
    """Most identities to plan, in the order of their names."""
    method: dict[str, Any] = field(default_factory=dict)
    """Settings of the method that differ from the profile: fields of dladiff.settings.schema.MethodConfig."""
    faces: tuple[str, ...] = ()
    """InsightFace pack folders: their encoders are optimised against, the first one's detector is used."""
    max_pixels: int = 50_000_000
    """Most pixels (width times height) of a photo."""
    max_photo_bytes: int = 200_000_000
    """Most bytes of a photo's file; a larger one is not read. 50 megapixels of 24 bits, uncompressed, are 150 MB."""
    max_photo_seconds: float = 60
    """Most seconds to decode one photo. 50 megapixels take about 3; the rest is for busy machines."""
    max_scans: int = 100
    """Most scans of a JPEG. Encoders write about 10, and each costs a pass over all pixels."""
    max_task_bytes: int = 16 * 2**30
    """Bytes of memory for the photos of one task; those that do not fit together are protected group by group. The
    default holds 64 photos of 12 megapixels or 8 of 50: docs/decisions/0012-bounded-photos.md has the sum."""
    cpus_per_actor: int = 1
    """CPUs an actor reserves; on the CPU also its torch threads."""
    gpus_per_actor: float = 0
    """GPUs an actor reserves; fractions share one, 0 is the CPU. `run_config` makes it 1 for a full-size model."""
    min_actors: int = 1
    """Actors that start at once."""
    max_actors: int | None = None
    """Most actors; None: as many as the machine or cluster holds."""
    max_starts: int = 4
    """Starts of an identity without an end before it is quarantined."""
    max_photos_per_task: int = 64
    """Photos of one identity that one task protects, with the same surrogates; an identity with more becomes several
    tasks. Which photos share a task is in each task's key, not in the digest: who has fewer is not done again."""
    patience_s: float = 300
    """Seconds an actor goes on trying while storage is overloaded or out of reach."""
    s3: dict[str, str] = field(default_factory=dict)
    """How objects are kept in an output bucket: server_side_encryption, kms_key_id, storage_class."""
    trace: bool = False
    """Keep the losses and similarities of every step in `traces/`, for `dladiff report` and `dladiff explain`."""
    umask: str = field(default_factory=chosen_umask)
    """Rights that new files and folders of a local output do not get, in octal: '077' leaves them to their owner, '027'
    lets the group read. Where it is not set, `DLADIFF_UMASK` decides, which every other command takes too."""
    protector: str = "dladiff.service:Protector"
    """module:class that does the work; not a setting of the command line."""

    def method_settings(self) -> dict[str, Any]:
        """Return what the protector is built from: profile, preset, overrides; plain JSON values."""
        overrides = dict(self.method)
        if self.faces:
            overrides.setdefault("encoders", list(self.faces))
            overrides.setdefault("detector", self.faces[0])
        settings = {"profile": self.profile, "preset": self.preset, "overrides": overrides, "trace": self.trace}
        return settings | {"gpu": self.gpus_per_actor > 0}

    def method_config(self) -> MethodConfig:
        """Return the method's configuration. Raises ConfigError."""
        settings = self.method_settings()
        return method_config(settings["profile"], settings["preset"], settings["overrides"])

    def layer_settings(self, *, faces: bool) -> dict[str, str]:
        """Return the settings of each layer that runs on a photo, as JSON, by manifest column: layer 2 needs faces."""
        method = self.method_config().to_dict()
        ran = {"finetuning": method["layers"] != "zero_shot", "zero_shot": method["layers"] != "finetuning" and faces}
        return {f"{layer}_layer": json.dumps(method[layer]) for layer, did in ran.items() if did}

    def config_digest(self) -> str:
        """Return the digest of what decides the output bytes; resources and places take no part, weights by content."""
        parts = {"method": by_content(self.method_config().to_dict()), "seed": self.seed, "max_pixels": self.max_pixels}
        return digest(parts)

    def missing_weights(self) -> list[str]:
        """Return what the settings name and this machine lacks, a line each; none with RAY_ADDRESS: its workers decide.

        Raises StorageError for a model in a bucket that is out of reach.
        """
        if os.environ.get("RAY_ADDRESS"):
            return []
        return [f"{fault}; or name a cluster that has it in RAY_ADDRESS" for fault in missing(self.method_config())]

    def layout_name(self) -> str:
        """Return the layout, with `one_identity` applied."""
        return "one" if self.one_identity else self.layout

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        out: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return out


def run_config(file: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Build the configuration from a YAML file, if any, and `overrides`, which win; None is no override.

    Raises ConfigError with every fault: unknown names with the nearest known one, types, ranges, the method's own.
    """
    values = read_yaml(file) if file else {}
    overrides = {key: value for key, value in overrides.items() if value is not None and value != ()}
    protection = overrides.pop("protection", None)  # an option of its own; in the file it is one of the method's
    values |= overrides
    if protection and isinstance(values.setdefault("method", {}), dict):
        values["method"] = {**values["method"], "protection": protection}
    known = [f.name for f in dataclasses.fields(RunConfig)]
    faults = [f"{key}: unknown setting{nearest(str(key), known)}" for key in values if key not in known]
    faults += [f"{key}: is missing; give --{key} URI" for key in ("input", "output") if not values.get(key)]
    good: dict[str, Any] = {}
    for key, value in values.items():
        if key in known and (fault := _fault(key, value)):
            faults.append(fault)
        elif key in known:
            good[key] = tuple(value) if key in ("faces", "allow_roots") else octal(value) if key == "umask" else value
    config = RunConfig(**{"input": "", "output": "", **good})
    faults += _contradictions(config)
    try:
        if config.method_config().model != "embedded" and "gpus_per_actor" not in values:
            config = dataclasses.replace(config, gpus_per_actor=1)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults)
    return config


def _contradictions(config: RunConfig) -> list[str]:
    faults = []
    if config.max_actors is not None and config.max_actors < config.min_actors:
        faults.append(f"max_actors: {config.max_actors} is less than min_actors = {config.min_actors}")
    if config.max_task_bytes < FILES_AT_ONCE * config.max_photo_bytes:
        least = f"{FILES_AT_ONCE} x max_photo_bytes = {FILES_AT_ONCE * config.max_photo_bytes}"
        faults.append(f"max_task_bytes: {config.max_task_bytes} is less than {least}")
    if config.one_identity and config.layout not in ("auto", "one"):
        faults.append(f"one_identity: contradicts layout: {config.layout}; give one of them")
    return faults


def read_yaml(file: Path, expected: str = "settings (name: value)", hint: str = "") -> dict[str, Any]:
    """Return the mapping that a YAML file holds; an empty one holds none. Raises ConfigError."""
    try:
        values, twice = _loaded(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror or error}{hint}"]) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, a tag that does not fit
        raise ConfigError([f"{file}: not YAML: {' '.join(str(error).split())}"]) from error
    if twice:
        raise ConfigError([f"{file}: {fault}" for fault in twice])
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{file}: expected {expected}, not a {type(values).__name__}"])
    return values


class _Loader(yaml.SafeLoader):
    """Notes names that one mapping holds twice: YAML forbids them, and PyYAML takes the last without a word."""

    def __init__(self, content: str) -> None:
        super().__init__(content)
        self.twice: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping as written; once `<<` is resolved, what it brought and what replaces it stand there too."""
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
    """Load YAML; return its value and a fault for each name that stands twice in its mapping."""
    loader = _Loader(content)
    try:
        return loader.get_single_data(), loader.twice
    finally:
        loader.dispose()


def _fault(key: str, value: Any) -> str | None:
    kinds = _TYPES[key]
    fits: bool = isinstance(value, kinds)
    if not fits or (isinstance(value, bool) and bool not in kinds):
        return f"{key}: expected {kinds[0].__name__}, not {value!r}"
    if key in _LEAST and value is not None and not value >= _LEAST[key]:
        return f"{key}: {value} is less than {_LEAST[key]}"
    if key in _MOST and value > _MOST[key]:
        return f"{key}: {value} is more than {_MOST[key]}"
    if key == "gpus_per_actor" and value > 1 and value % 1 != 0:
        return f"{key}: {value} is no part of one GPU and no whole number of them"
    if key == "layout" and value not in LAYOUTS:
        return f"{key}: {value!r} is unknown{nearest(value, list(LAYOUTS))}; choose one of {', '.join(LAYOUTS)}"
    if key == "s3":
        return _s3_fault(value)
    if key in _CHECKS and (value or key == "umask") and (fault := _CHECKS[key](value)):
        return f"{key}: {fault}"
    if key == "faces" and not all(isinstance(item, str) for item in value):
        return f"{key}: expected a list of folders, not {value!r}"
    return None


def _roots_fault(value: Any) -> str | None:
    """Whether the folders are there is checked where the index is read: a job may name folders of the cluster."""
    if any(not isinstance(root, str) or not root or (root.startswith("s3://")) for root in value):
        return f"expected a list of folders, not {value!r}"
    return next((fault for root in value if (fault := address_fault(root))), None)


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    **dict.fromkeys(("input", "output", "lists"), address_fault),
    "umask": umask_fault,
    "allow_roots": _roots_fault,
}


def _s3_fault(value: dict[Any, Any]) -> str | None:
    for name, text in value.items():
        if name not in S3_OPTIONS:
            return f"s3.{name}: unknown setting{nearest(str(name), list(S3_OPTIONS))}"
        if not isinstance(text, str) or not text:
            return f"s3.{name}: expected text, not {text!r}"
    return None
