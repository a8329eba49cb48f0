"""The plan of an evaluation: a row per identity, condition, attack, base model, preprocessing, share and seed."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dladiff.errors import ConfigError, NotFoundError, StorageError
from dladiff.evaluation.attacks import ATTACKS, ENCODER_ONLY, TINY
from dladiff.evaluation.verification import REFERENCES
from dladiff.settings.merge import digest
from pipeline.evaluate.config import EvaluateConfig
from pipeline.models.fingerprint import fingerprint
from pipeline.records.checked import photo_fault, stored_fault
from pipeline.records.manifest import PHOTOS_KEY
from pipeline.records.schema import NO_PARQUET, PHOTOS, parquet, with_later
from pipeline.sources.grouping import SET_FILE, SET_FOLDER
from pipeline.sources.originals import Originals, named, originals, stored_limit
from pipeline.storage.keys import key_fault, shown
from pipeline.storage.open import open_storage

log = logging.getLogger(__name__)

BATCH = 500
"""Manifest rows that are read at once."""
WEIGHTS = ("adapter", "encoder", "control")
"""Settings of attacks that name files."""

Row = dict[str, Any]
"""An attack on one person: the work while it is planned, with its measurements once it is done."""
Reference = tuple[str, str]
"""Address of a photo, and a tag that changes with its content."""


@dataclass
class EvaluationPlan:
    """The rows to run, identity by identity."""

    rows: list[Row] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Identities that some run does not protect."""
    inputs: tuple[str, ...] = ()
    """Addresses below which originals are read."""
    note: str = ""
    """A note about the input, for the user."""
    optimised: set[str] = field(default_factory=set)
    """Digests and names of the encoders that the main run's layer 2 optimised against."""


def make_plan(config: EvaluateConfig) -> EvaluationPlan:
    """List the rows. Raises ConfigError (a run has no manifest, the runs share no identity) and StorageError."""
    sources = originals(open_storage(config.output), config.inputs)
    plan = EvaluationPlan(note=sources.note, inputs=sources.addresses())
    optimised: dict[str, set[str]] = {name: set() for name in config.runs}
    # a photo that several runs protect is read from the main run's input, so only that run's are checked
    runs = {n: _protected(uri, optimised[n], sources if n == config.name else None) for n, uri in config.runs.items()}
    plan.optimised = optimised[config.name]
    everyone = sorted(set().union(*runs.values()))
    common = {name: _photos_in_all_runs(name, runs, config.photos) for name in everyone}
    plan.left_out = [name for name in everyone if not common[name]]
    plan.identities = [name for name in everyone if common[name]][: config.identities]
    if not plan.identities:
        note = [sources.note] if sources.note else []
        raise ConfigError(["no identity is protected in every run; compare runs of the same photos", *note])
    parts = config.digest_parts()
    fingerprints = {name: fingerprint(name) for name in config.bases}
    preprocessings = {name: _preprocessing_key(name) for name in ("none", *config.preprocessings)}
    rescores = sorted(_preprocessing_key(name) for name in config.rescores)
    settings = {name: _by_content(given) for name, given in config.settings.items()}
    defaults = {name: _defaults(name) for name in config.attacks}
    if config.references is not None:
        sources = named([config.references])
    for identity in plan.identities:
        photos = common[identity]
        attacked = {photo["source_uri"] for photo in photos}
        own = sorted((p["source_uri"], p["source_sha256"]) for p in runs[config.name][identity].values())
        references = _references(config, identity, photos, [(u, t) for u, t in own if u not in attacked], sources)
        for combination in _combinations(config):
            row = {"identity": identity, **combination, "photos": photos, "references": [uri for uri, _ in references]}
            about = row | {"photos": [_content(p, combination["condition"], config.name) for p in photos]}
            about |= {"references": [[uri.rpartition("/")[2], tag] for uri, tag in references]}
            about |= {"preprocessing": preprocessings[combination["preprocessing"]]}
            about |= {"base": fingerprints[combination["base"]], "settings": settings.get(combination["attack"], {})}
            about |= {"defaults": defaults.get(combination["attack"], {})}
            if rescores and combination["attack"] != ENCODER_ONLY:  # rows without it keep their keys
                about |= {"rescore": rescores}
            row["key"] = digest({"row": about, **parts})[:32]
            plan.rows.append(row)
    return plan


def _by_content(settings: dict[str, Any]) -> dict[str, Any]:
    """Replace the paths of weights by digests of their content, so that changed weights make new rows."""
    return {key: fingerprint(str(value)) if key in WEIGHTS else value for key, value in settings.items()}


def _defaults(attack: str) -> dict[str, Any]:
    """Return an attack's default settings by kind of base model, weights by content; {} for `encoder_only`."""
    kinds = ATTACKS[attack].settings() if attack in ATTACKS else {}
    by_content = {kind: _by_content(settings.to_dict()) for kind, settings in kinds.items()}
    return {  # paths of missing weights are made relative, so that keys do not depend on the place of installation
        kind: {k: v.removeprefix(str(TINY)) if isinstance(v, str) else v for k, v in settings.items()}
        for kind, settings in by_content.items()
    }


def _preprocessing_key(preprocessing: str) -> str:
    """Return NAME, or NAME=DIGEST of a purifier's weights."""
    name, has_folder, folder = preprocessing.partition("=")
    return f"{name}={fingerprint(folder)}" if has_folder else name


def _combinations(config: EvaluateConfig) -> Iterator[Row]:
    """Yield condition, attack, base, preprocessing, share and seed of each row of one identity."""
    attacks = [a for a in config.attacks if a != ENCODER_ONLY]
    for seed in config.seeds:
        for base in config.bases:
            for preprocessing in dict.fromkeys(("none", *config.preprocessings)):
                for attack in (ENCODER_ONLY, *(attacks if preprocessing in config.preprocessings else ())):
                    for condition in config.conditions:
                        row = {"condition": condition, "attack": attack, "base": base, "preprocessing": preprocessing}
                        for share in config.shares:
                            if _is_distinct(config, row, share, seed):
                                yield row | {"share": share, "seed": seed}


def _is_distinct(config: EvaluateConfig, row: Row, share: int, seed: int) -> bool:
    """Return whether a combination differs from all others."""
    if row["condition"] == "clean" and share != max(config.shares):
        return False  # clean photos are the same at any share
    if row["attack"] == ENCODER_ONLY:  # it measures every photo, without a base model or a seed
        return share == max(config.shares) and seed == config.seeds[0] and row["base"] == config.bases[0]
    return True


def _protected(uri: str, optimised: set[str], sources: Originals | None) -> dict[str, dict[str, Row]]:
    """Read a run's manifest. Return {identity: {source digest: photo}}.

    The digests and names of the encoders in the column `models` are added to `optimised`. Damaged rows and photos whose
    original is outside of `sources` are left out with a warning.
    """
    storage = open_storage(uri)
    left_out: Counter[str] = Counter()
    photos: dict[str, dict[str, Row]] = {}
    try:
        file = parquet(storage.get(PHOTOS_KEY), PHOTOS)
        for batch in file.iter_batches(BATCH, columns=PHOTOS.names):
            for row in with_later(batch, PHOTOS).to_pylist():
                if fault := _fault(row, sources):
                    left_out[fault] += 1
                    continue
                models = (model for model in row["models"] or [] if model["role"] == "encoder")
                optimised |= {name for model in models for name in (model["sha256"], model["name"]) if name}
                if row["output_key"]:
                    photo = {name: row[name] for name in ("source_uri", "source_sha256", "output_sha256")}
                    photo |= {"output_uri": storage.uri_of(row["output_key"]), "limit": stored_limit(row)}
                    photos.setdefault(row["identity"], {})[row["source_sha256"]] = photo
    except NotFoundError as error:
        raise ConfigError([f"{uri} holds no {PHOTOS_KEY}: name the --output of a `dladiff protect`"]) from error
    except NO_PARQUET as error:
        raise StorageError(f"{storage.uri_of(PHOTOS_KEY)} cannot be read; run `dladiff finalise`") from error
    for fault, count in left_out.items():
        log.warning("%s: left out %d rows: %s", shown(storage.uri_of(PHOTOS_KEY)), count, fault)
    return photos


def _fault(row: Row, sources: Originals | None) -> str:
    """Return why a manifest's row must be left out, or ""."""
    if photo_fault(row) or (row["output_key"] and stored_fault(row)):
        return "damaged; run `dladiff finalise`"
    outside = sources is not None and row["output_key"] and not sources.inside(row["source_uri"])
    return "the original is outside of the input" if outside else ""


def _photos_in_all_runs(identity: str, runs: dict[str, dict[str, dict[str, Row]]], count: int) -> list[Row]:
    """Return the first `count` photos that all runs protect, each with its source and every run's protected file."""
    own = [run.get(identity, {}) for run in runs.values()]
    shared = set.intersection(*(set(photos) for photos in own))
    rows = sorted((own[-1][sha] for sha in shared), key=lambda row: row["source_uri"])[:count]
    return [
        {
            "source_uri": row["source_uri"],
            "source_sha256": row["source_sha256"],
            "protected": {
                name: {k: photos[identity][row["source_sha256"]][k] for k in ("output_uri", "output_sha256", "limit")}
                for name, photos in runs.items()
            },
        }
        for row in rows
    ]


def _content(photo: Row, condition: str, main: str) -> list[str]:
    """Return the digests of the files that a condition uses of a photo."""
    if condition == "clean":
        return [photo["source_sha256"]]
    run = main if condition == "noise" else condition
    return [photo["source_sha256"], photo["protected"][run]["output_sha256"]]


def _references(
    config: EvaluateConfig, identity: str, photos: list[Row], others: list[Reference], sources: Originals
) -> list[Reference]:
    """Return at most REFERENCES clean photos of an identity that the attacker does not have.

    They are those of `config.references`, else the sets A and C beside a set B, else `others`, the originals of the
    identity's further photos. Other files of a folder are not used, because they may show other people. `sources` reads
    below the references, or below the input.
    """
    if config.references is not None:
        folder = f"{config.references.rstrip('/')}/{identity}"
        # an identity that is no valid storage key has no folder
        return [] if key_fault(identity) else sources.photos(folder)[:REFERENCES]
    folder, _, name = photos[0]["source_uri"].rpartition("/")
    above, _, last = folder.rpartition("/")
    if (own := SET_FOLDER.fullmatch(last)) and sources.inside(f"{above}/"):
        photos_of_sets = [(photo, SET_FOLDER.fullmatch(photo[0].split("/")[-2])) for photo in sources.photos(above)]
    elif own := SET_FILE.fullmatch(name):
        photos_of_sets = [(photo, SET_FILE.fullmatch(photo[0].rpartition("/")[2])) for photo in sources.photos(folder)]
    else:
        return others[:REFERENCES]
    return [photo for photo, match in photos_of_sets if match and match[1].upper() != own[1].upper()][:REFERENCES]
