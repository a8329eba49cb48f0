"""What an evaluation does: one row an identity, condition, attack, base, preprocessing, share and seed."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dladiff.errors import ConfigError, NotFoundError, StorageError
from dladiff.evaluation.attacks import ATTACKS, TINY
from dladiff.settings.merge import digest
from pipeline.evaluate.config import ENCODER_ONLY, EvaluateConfig
from pipeline.models.fingerprint import fingerprint
from pipeline.records.checked import photo_fault, stored_fault
from pipeline.records.manifest import PHOTOS_KEY
from pipeline.records.schema import NO_PARQUET, PHOTOS, parquet
from pipeline.sources.grouping import SET_FILE, SET_FOLDER
from pipeline.sources.originals import Originals, named, originals, stored_limit
from pipeline.storage.keys import key_fault, shown
from pipeline.storage.open import open_storage

log = logging.getLogger(__name__)

BATCH = 500
WEIGHTS = ("adapter", "encoder", "control")  # settings of attacks that name files
REFERENCES = 16  # clean photos of a person that the judge averages

Row = dict[str, Any]
Place = tuple[str, str]
"""Address of a photo, and what changes with its content."""


@dataclass
class EvaluationPlan:
    """Rows in the order in which they are done: one identity's whole comparison before the next."""

    rows: list[Row] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Identities that not every run protects."""
    inputs: tuple[str, ...] = ()
    """Addresses that originals are read below."""
    note: str = ""
    """What is to be known of the input."""
    optimised: set[str] = field(default_factory=set)
    """Digests and names of the encoders that the main run's layer 2 optimised against."""


def make_plan(config: EvaluateConfig) -> EvaluationPlan:
    """List what to do. Raises ConfigError (a run without a manifest, no identity in common) and StorageError."""
    sources = originals(open_storage(config.output), config.inputs)
    plan = EvaluationPlan(note=sources.note, inputs=sources.addresses())
    optimised: dict[str, set[str]] = {name: set() for name in config.runs}
    # of a photo that several runs protect, the main run's original is read
    runs = {n: _protected(uri, optimised[n], sources if n == config.name else None) for n, uri in config.runs.items()}
    plan.optimised = optimised[config.name]
    everyone = sorted(set().union(*runs.values()))
    common = {name: _in_all(name, runs, config.photos) for name in everyone}
    plan.left_out = [name for name in everyone if not common[name]]
    plan.identities = [name for name in everyone if common[name]][: config.identities]
    if not plan.identities:
        note = [sources.note] if sources.note else []
        raise ConfigError(["no identity is protected in every run; compare runs of the same photos", *note])
    parts = config.digest_parts()
    fingerprints = {name: fingerprint(name) for name in config.bases}
    ways = {way: _weighed(way) for way in ("none", *config.preprocessings)}
    settings = {name: _by_content(given) for name, given in config.settings.items()}
    defaults = {name: _defaults(name) for name in config.attacks}
    if config.references is not None:
        sources = named([config.references])
    for identity in plan.identities:
        photos = common[identity]
        taken = {photo["source_uri"] for photo in photos}
        own = sorted((p["source_uri"], p["source_sha256"]) for p in runs[config.name][identity].values())
        references = _references(config, identity, photos, [(u, t) for u, t in own if u not in taken], sources)
        for what in _combinations(config):
            row = {"identity": identity, **what, "photos": photos, "references": [uri for uri, _ in references]}
            about = row | {"photos": [_content(p, what["condition"], config.name) for p in photos]}
            about |= {"references": [[uri.rpartition("/")[2], tag] for uri, tag in references]}
            about |= {"preprocessing": ways[what["preprocessing"]]}
            about |= {"base": fingerprints[what["base"]], "settings": settings.get(what["attack"], {})}
            about |= {"defaults": defaults.get(what["attack"], {})}
            row["key"] = digest({"row": about, **parts})[:32]
            plan.rows.append(row)
    return plan


def _by_content(settings: dict[str, Any]) -> dict[str, Any]:
    """Name weights by what is in them, so that other weights under an old name are another attack."""
    return {key: fingerprint(str(value)) if key in WEIGHTS else value for key, value in settings.items()}


def _defaults(attack: str) -> dict[str, Any]:
    """Return an attack's default settings for each kind of base model, weights by content; {} for `encoder_only`."""
    kinds = ATTACKS[attack].settings() if attack in ATTACKS else {}
    found = {kind: _by_content(settings.to_dict()) for kind, settings in kinds.items()}
    return {  # weights that did not ship keep their path: the same key on every machine
        kind: {k: v.removeprefix(str(TINY)) if isinstance(v, str) else v for k, v in settings.items()}
        for kind, settings in found.items()
    }


def _weighed(way: str) -> str:
    """Name a purifier's weights by their content too."""
    name, given, folder = way.partition("=")
    return f"{name}={fingerprint(folder)}" if given else name


def _combinations(config: EvaluateConfig) -> Iterator[Row]:
    """Yield condition, attack, base, preprocessing, share and seed of each row of one identity."""
    attacks = [a for a in config.attacks if a != ENCODER_ONLY]
    for seed in config.seeds:
        for base in config.bases:
            for way in dict.fromkeys(("none", *config.preprocessings)):
                for attack in (ENCODER_ONLY, *(attacks if way in config.preprocessings else ())):
                    for condition in config.conditions:
                        for share in config.shares:
                            row = {"condition": condition, "attack": attack, "base": base, "preprocessing": way}
                            if _wanted(config, row, share, seed):
                                yield row | {"share": share, "seed": seed}


def _wanted(config: EvaluateConfig, row: Row, share: int, seed: int) -> bool:
    """Tell whether a combination says anything of its own."""
    if row["condition"] == "clean" and share != max(config.shares):
        return False  # nothing is protected at any share
    if row["attack"] == ENCODER_ONLY:  # photo by photo, nothing is drawn or generated
        return share == max(config.shares) and seed == config.seeds[0] and row["base"] == config.bases[0]
    return True


def _protected(uri: str, optimised: set[str], sources: Originals | None) -> dict[str, dict[str, Row]]:
    """Read a run's manifest: identity to source digest to its photo. Fills `optimised` from the models column.

    Rows that no record can hold are left out with a warning, and so are photos whose original is outside of `sources`.
    """
    storage = open_storage(uri)
    lost: Counter[str] = Counter()
    found: dict[str, dict[str, Row]] = {}
    try:
        file = parquet(storage.get(PHOTOS_KEY), PHOTOS)
        for batch in file.iter_batches(BATCH, columns=PHOTOS.names):
            for row in batch.to_pylist():
                if fault := _fault(row, sources):
                    lost[fault] += 1
                    continue
                models = (model for model in row["models"] or [] if model["role"] == "encoder")
                optimised |= {name for model in models for name in (model["sha256"], model["name"]) if name}
                if row["output_key"]:
                    photo = {name: row[name] for name in ("source_uri", "source_sha256", "output_sha256")}
                    photo |= {"output_uri": storage.uri_of(row["output_key"]), "limit": stored_limit(row)}
                    found.setdefault(row["identity"], {})[row["source_sha256"]] = photo
    except NotFoundError as error:
        raise ConfigError([f"{uri} holds no {PHOTOS_KEY}: name the --output of a `dladiff protect`"]) from error
    except NO_PARQUET as error:
        raise StorageError(f"{storage.uri_of(PHOTOS_KEY)} cannot be read; run `dladiff finalise`") from error
    for fault, count in lost.items():
        log.warning("%s: left out %d rows: %s", shown(storage.uri_of(PHOTOS_KEY)), count, fault)
    return found


def _fault(row: Row, sources: Originals | None) -> str:
    """Why a row of a manifest takes no part."""
    if photo_fault(row) or (row["output_key"] and stored_fault(row)):
        return "damaged; run `dladiff finalise`"
    outside = sources is not None and row["output_key"] and not sources.inside(row["source_uri"])
    return "the original is outside of the input" if outside else ""


def _in_all(identity: str, runs: dict[str, dict[str, dict[str, Row]]], most: int) -> list[Row]:
    """The first photos that every run protects: source, and each run's protected file."""
    own = [run.get(identity, {}) for run in runs.values()]
    shared = set.intersection(*(set(photos) for photos in own))
    rows = sorted((own[-1][sha] for sha in shared), key=lambda row: row["source_uri"])[:most]
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
    """Digests of what a condition shows of a photo."""
    if condition == "clean":
        return [photo["source_sha256"]]
    run = main if condition == "noise" else condition
    return [photo["source_sha256"], photo["protected"][run]["output_sha256"]]


def _references(
    config: EvaluateConfig, identity: str, photos: list[Row], others: list[Place], sources: Originals
) -> list[Place]:
    """Clean photos that the thief does not have.

    Those of `references`; else set A and C beside a set B; else the `others`, originals of the identity's further
    photos. A folder is not looked through otherwise: it may hold other people. `sources` reads below the references,
    or below the input.
    """
    if config.references is not None:
        place = f"{config.references.rstrip('/')}/{identity}"
        # a name that is no key is no folder's
        return [] if key_fault(identity) else sources.photos(place)[:REFERENCES]
    folder, _, name = photos[0]["source_uri"].rpartition("/")
    above, _, last = folder.rpartition("/")
    if (own := SET_FOLDER.fullmatch(last)) and sources.inside(f"{above}/"):
        beside = [(place, SET_FOLDER.fullmatch(place[0].split("/")[-2])) for place in sources.photos(above)]
    elif own := SET_FILE.fullmatch(name):
        beside = [(place, SET_FILE.fullmatch(place[0].rpartition("/")[2])) for place in sources.photos(folder)]
    else:
        return others[:REFERENCES]
    return [place for place, mark in beside if mark and mark[1].upper() != own[1].upper()][:REFERENCES]
