"""`dladiff plan --look N`: do the photos of an identity show one person? A few identities are read on this machine.

Networks run in a process of their own (`pipeline.run.look_worker`), so that this one imports no torch.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dladiff.core.grouping import MIN_FACES
from dladiff.errors import ConfigError, DladiffError, ModelError, StorageError
from dladiff.settings.schema import encoder_fault
from pipeline.config import RunConfig
from pipeline.run.plan import identities, listed, open_existing
from pipeline.sources.find import Identity
from pipeline.storage.keys import shown

PHOTOS = 8  # of one identity: 28 pairs, and seconds of a CPU
KINDS: dict[str, type[DladiffError]] = {kind.__name__: kind for kind in (ModelError, StorageError)}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the faces of one identity say."""

    identity: str
    photos: int
    """Photos that were read."""
    faces: int
    """Photos with a face."""
    median: float | None
    """Median cosine over all pairs of faces; None for too few."""
    mixed: bool
    """Whether they show different people."""

    def line(self) -> str:
        """Return the line to print."""
        if self.median is None:
            text = f"{self.faces} faces in {self.photos} photos are too few to compare"
        else:
            says = "different people" if self.mixed else "one person"
            text = f"{says} (median similarity {self.median:.2f} of {self.faces} faces)"
        return f"look: {shown(self.identity)}: {text}"


def look(config: RunConfig, count: int) -> list[Look]:
    """Read up to PHOTOS photos of `count` identities, chosen by the seed among those with MIN_FACES photos or more.

    Raises ConfigError without an encoder, ModelError without its weights, StorageError.
    """
    method = config.method_config()
    if fault := encoder_fault(method):
        raise ConfigError([fault])
    if not method.encoders:
        raise ConfigError(["look: compares faces by an identity encoder; give --faces or method.encoders"])
    chosen = _sample(identities(config, open_existing(config.output)), count, random.Random(config.seed))
    return _looked(config, [{"identity": one.name, "photos": listed(_spread(one))} for one in chosen]) if chosen else []


def advice(found: list[Look]) -> str:
    """Return the last line."""
    if not found:
        return f"look: no identity has {MIN_FACES} photos or more, so there is nothing to compare"
    mixed = sum(one.mixed for one in found)
    if not mixed:
        return f"look: none of {len(found)} identities looks like different people"
    return f"look: {mixed} of {len(found)} identities look like different people; give --layout flat"


def _sample(among: Iterable[Identity], count: int, generator: random.Random) -> list[Identity]:
    """Return `count` identities, each with the same probability, in bounded memory (reservoir sampling)."""
    kept: list[Identity] = []
    seen = 0
    for identity in among:
        if len(identity.photos) < MIN_FACES:
            continue
        seen += 1
        if len(kept) < count:
            kept.append(identity)
        elif (place := generator.randrange(seen)) < count:
            kept[place] = identity
    return sorted(kept, key=lambda one: one.name)


def _spread(identity: Identity) -> list[Any]:
    """Return at most PHOTOS photos, evenly spaced."""
    photos = identity.photos
    most = min(PHOTOS, len(photos))
    return [photos[i * len(photos) // most] for i in range(most)]


def _looked(config: RunConfig, chosen: list[dict[str, Any]]) -> list[Look]:
    given = json.dumps({"run": config.to_dict(), "identities": chosen})
    command = [sys.executable, "-m", "pipeline.run.look_worker"]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"look: the process that compares faces failed: {why}") from None
    if "error" in answer:
        raise KINDS.get(answer["kind"], ModelError)(answer["error"])
    return [Look(**one) for one in answer["found"]]
