"""What a report shows, gathered from the manifest in one pass: figures, a sample of photos, failures, settings."""

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
from pipeline.records.schema import NO_PARQUET, parquet
from pipeline.report.sample import Person, Row, Sample, seconds_of
from pipeline.storage.base import Storage

BATCH = 500  # manifest rows held at a time
BINS = (8, 24)  # fewest and most bars of a histogram
LISTED = 200  # failures named one by one; `dladiff failed` lists them all
SETUPS = 20  # settings, models and versions named apart; an output of that many different runs is an odd one
LAYERS = {"finetuning_layer": "Layer 1, against fine-tuning", "zero_shot_layer": "Layer 2, against identity encoders"}


@dataclass(frozen=True)
class Spread:
    """How many values, their median, and the 5th and 95th percentiles."""

    count: int
    median: float
    low: float
    high: float


class Series:
    """The values of one measure: eight bytes each, whatever the collection; None is left out."""

    def __init__(self) -> None:
        self.values = array("d")

    def add(self, value: float | None) -> None:
        """Append a value."""
        if value is not None:
            self.values.append(value)

    @property
    def spread(self) -> Spread | None:
        """Median and middle nine tenths; None without a value."""
        if not self.values:
            return None
        low, median, high = np.percentile(self.values, (5, 50, 95))
        return Spread(len(self.values), float(median), float(low), float(high))

    def bins(self, low: float, high: float) -> list[int]:
        """Return how many values fall into each of some equal steps; more values get finer steps."""
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
    """Everything the page says, the pictures apart."""

    sample: Sample
    people: dict[str, Person] = field(default_factory=dict)
    identities: Counter[str] = field(default_factory=Counter)
    photos: Counter[str] = field(default_factory=Counter)
    psnr: Series = field(default_factory=Series)
    psnr_face: Series = field(default_factory=Series)
    ssim: Series = field(default_factory=Series)
    seconds: Series = field(default_factory=Series)
    encoders: dict[tuple[str, bool], Encoder] = field(default_factory=dict)
    setups: dict[str, Row] = field(default_factory=dict)
    models: dict[str, Row] = field(default_factory=dict)
    versions: dict[str, Row] = field(default_factory=dict)
    lost: list[Row] = field(default_factory=list)
    lost_count: int = 0
    damaged: int = 0
    """Rows of the manifests that are left out, since they hold what no record can."""
    since: Any = None
    until: Any = None

    def pooled(self, *, optimised: bool) -> Encoder:
        """Return the values of all optimised or all held-out encoders together."""
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


def _stream(storage: Storage, key: str, facts: Facts, fault_of: Callable[[Row], str]) -> Iterator[Row]:
    if storage.tag(key) is None:
        raise ConfigError([f"{storage.uri_of(key)}: is missing; run `dladiff finalise --output {storage.uri}`"])
    try:
        file = parquet(storage.get(key), FILES[key])
        for batch in file.iter_batches(batch_size=BATCH, columns=FILES[key].names):
            for row in batch.to_pylist():
                if fault_of(row):
                    facts.damaged += 1
                else:
                    yield row
    except NO_PARQUET as error:
        raise StorageError(
            f"{storage.uri_of(key)} cannot be read; run `dladiff finalise --output {storage.uri}`"
        ) from error


def _person(row: Row) -> Person:
    reason = row["reason"] or ""
    return Person(row["identity"], row["status"], reason, seconds=seconds_of(row))


def _lose(facts: Facts, row: Row, uri: str) -> None:
    facts.lost_count += 1
    if len(facts.lost) < LISTED:
        facts.lost.append({"identity": row["identity"], "uri": uri, "status": row["status"], "reason": row["reason"]})


def _measure(facts: Facts, row: Row) -> None:
    if row["output_key"]:
        for name in ("psnr", "psnr_face", "ssim"):
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


def _count(into: dict[str, Row], key: str, make: Callable[[], Row]) -> None:
    if key not in into:
        if len(into) == SETUPS:
            return
        into[key] = make() | {"count": 0}
    into[key]["count"] += 1


def _setup(row: Row) -> Row:
    return {"digest": row["config_digest"] or "", "seed": row["seed"], "layers": {}}


def _add_layers(setup: Row | None, row: Row) -> None:
    """Take the settings of the layers that ran on this photo: layer 2 runs on faces alone."""
    for name, title in LAYERS.items():
        if setup is not None and row[name] and title not in setup["layers"]:
            setup["layers"][title] = layer_settings(row[name])
