"""Data of a report, from one pass over the manifests: figures, a sample of photos, failures, settings."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from dladiff.errors import ConfigError, StorageError
from pipeline.records.checked import identity_fault, layer_settings, photo_fault
from pipeline.records.manifest import FILES, IDENTITIES_KEY, PHOTOS_KEY
from pipeline.records.schema import NO_PARQUET, IdentityRow, PhotoRow, parquet, with_later
from pipeline.report.sample import Person, Sample, seconds_of
from pipeline.storage.base import Storage

BATCH = 500  # manifest rows held at a time
BINS = (8, 24)  # fewest and most bars of a histogram
LISTED = 200  # most failures listed; `dladiff failed` lists all
SETUPS = 20  # most settings, models and versions listed each; outputs rarely have more
LAYERS = {
    "finetuning_layer": "Layer 1, against fine-tuning",
    "zero_shot_layer": "Layer 2, against identity encoders",
    "joint_layers": "Both layers, under one visibility budget",
}

Entry = dict[str, Any]
"""Template values of a failure, or of settings, a model or versions with their count."""


@dataclass(frozen=True)
class Spread:
    """Count of values, median, and 5th and 95th percentile."""

    count: int
    median: float
    low: float
    high: float


class Series:
    """The values of one measure, eight bytes each; None is skipped."""

    def __init__(self) -> None:
        self.values = array("d")

    def add(self, value: float | None) -> None:
        """Append a value; None is skipped."""
        if value is not None:
            self.values.append(value)

    @property
    def spread(self) -> Spread | None:
        """Median and percentiles; None without a value."""
        if not self.values:
            return None
        low, median, high = np.percentile(self.values, (5, 50, 95))
        return Spread(len(self.values), float(median), float(low), float(high))

    def bins(self, low: float, high: float) -> list[int]:
        """Return the counts of a histogram from `low` to `high`; more values get more bins."""
        steps = int(np.clip(2 * np.sqrt(len(self.values)), *BINS))
        return [int(n) for n in np.histogram(self.values, bins=steps, range=(low, high))[0]]


@dataclass
class Encoder:
    """One identity encoder: cosine to the original photo after layer 1 (before) and in the stored photo (after)."""

    name: str
    optimised: bool
    before: Series = field(default_factory=Series)
    after: Series = field(default_factory=Series)


@dataclass
class Facts:
    """Everything on the page except the pictures."""

    sample: Sample
    people: dict[str, Person] = field(default_factory=dict)
    identities: Counter[str] = field(default_factory=Counter)
    photos: Counter[str] = field(default_factory=Counter)
    psnr: Series = field(default_factory=Series)
    psnr_face: Series = field(default_factory=Series)
    ssim: Series = field(default_factory=Series)
    ssimulacra2: Series = field(default_factory=Series)
    ssimulacra2_face: Series = field(default_factory=Series)
    seconds: Series = field(default_factory=Series)
    encoders: dict[tuple[str, bool], Encoder] = field(default_factory=dict)
    setups: dict[str, Entry] = field(default_factory=dict)
    models: dict[str, Entry] = field(default_factory=dict)
    versions: dict[str, Entry] = field(default_factory=dict)
    lost: list[Entry] = field(default_factory=list)
    lost_count: int = 0
    damaged: int = 0
    """Number of manifest rows that are skipped because no record can hold their values."""
    since: Any = None
    until: Any = None

    def pooled(self, *, optimised: bool) -> Encoder:
        """Return one Encoder with the values of all optimised, or all held-out, encoders."""
        whole = Encoder("optimised" if optimised else "held-out", optimised)
        for one in (e for e in self.encoders.values() if e.optimised is optimised):
            whole.before.values.extend(one.before.values)
            whole.after.values.extend(one.after.values)
        return whole


def gather(storage: Storage, size: int, seed: int = 0) -> Facts:
    """Read both manifests, BATCH rows at a time. Raises ConfigError when one is missing, StorageError when damaged."""
    facts = Facts(Sample(size, seed))
    for row in _stream(storage, IDENTITIES_KEY, facts, identity_fault):
        facts.identities[row["status"]] += 1
        facts.people[row["identity"]] = _person(row)
        if row["status"] != "done":
            _lose(facts, row, "")
        elif row["seconds"] and row["photos"]:
            facts.seconds.add(seconds_of(row) / row["photos"])
        facts.since = min(filter(None, (facts.since, row["started_at"])), default=None)
        facts.until = max(filter(None, (facts.until, row["finished_at"])), default=None)
    for row in _stream(storage, PHOTOS_KEY, facts, photo_fault):
        facts.photos[row["status"]] += 1
        _measure(facts, row)
        person = facts.people.setdefault(row["identity"], Person(row["identity"], "partial"))
        if row["status"] in ("failed", "skipped") and person.status == "done":
            _lose(facts, row, row["source_uri"])
        facts.sample.add(row | {"first": person.photos == 0})
        person.add(row)
    return facts


def _stream(storage: Storage, key: str, facts: Facts, fault_of: Callable[[Entry], str]) -> Iterator[Entry]:
    if storage.tag(key) is None:
        raise ConfigError([f"{storage.uri_of(key)}: is missing; run `dladiff finalise --output {storage.uri}`"])
    try:
        file = parquet(storage.get(key), FILES[key])
        for batch in file.iter_batches(batch_size=BATCH, columns=FILES[key].names):
            for row in with_later(batch, FILES[key]).to_pylist():
                if fault_of(row):
                    facts.damaged += 1
                else:
                    yield row
    except NO_PARQUET as error:
        raise StorageError(
            f"{storage.uri_of(key)} cannot be read; run `dladiff finalise --output {storage.uri}`"
        ) from error


def _person(row: IdentityRow) -> Person:
    reason = row["reason"] or ""
    return Person(row["identity"], row["status"], reason, seconds=seconds_of(row))


def _lose(facts: Facts, row: PhotoRow | IdentityRow, uri: str) -> None:
    facts.lost_count += 1
    if len(facts.lost) < LISTED:
        facts.lost.append({"identity": row["identity"], "uri": uri, "status": row["status"], "reason": row["reason"]})


def _measure(facts: Facts, row: PhotoRow) -> None:
    if row["output_key"]:
        for name in ("psnr", "psnr_face", "ssim", "ssimulacra2", "ssimulacra2_face"):
            getattr(facts, name).add(row[name])
    for entry in row["similarity"] or []:
        which = (entry["encoder"], entry["optimised"])
        encoder = facts.encoders.setdefault(which, Encoder(*which))
        encoder.before.add(entry["before"])
        encoder.after.add(entry["after"])
    if row["output_key"]:
        _count(facts.setups, row["config_digest"] or "", lambda: _setup(row))
        _add_layers(facts.setups.get(row["config_digest"] or ""), row)
    for model in row["models"] or []:
        _count(facts.models, json.dumps(model), partial(dict, model))
    if row["versions"]:
        versions = dict(row["versions"]) | {"device": row["device"]}
        _count(facts.versions, json.dumps(versions), lambda: {"packages": versions})


def _count(into: dict[str, Entry], key: str, make: Callable[[], Entry]) -> None:
    if key not in into:
        if len(into) == SETUPS:
            return
        into[key] = make() | {"count": 0}
    into[key]["count"] += 1


def _setup(row: PhotoRow) -> Entry:
    return {"digest": row["config_digest"] or "", "seed": row["seed"], "layers": {}}


def _add_layers(setup: Entry | None, row: PhotoRow) -> None:
    """Add the settings of the layers that ran on this photo; layer 2 runs only on faces."""
    for name, title in LAYERS.items():
        if setup is not None and row.get(name) and title not in setup["layers"]:
            setup["layers"][title] = layer_settings(row[name])
