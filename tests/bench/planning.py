"""Seconds and memory of planning a collection that is only listed: `python -m tests.bench.planning`, Linux."""

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from pipeline.config import RunConfig
from pipeline.run import plan
from pipeline.sources.find import Identity, find_identities
from pipeline.storage.base import Entry, Storage

Figures = dict[str, float | int | str]


class Synthetic:
    """A read-only collection named as VGGFace2: its keys follow from a seed and are made while they are listed."""

    def __init__(self, keys: int, people: int, seed: int = 0) -> None:
        if not 1 <= people <= keys:
            raise ValueError(f"{keys} keys are too few for {people} people")
        cuts = sorted(random.Random(seed).choices(range(keys - people + 1), k=people - 1))
        self.counts = [end - start + 1 for start, end in zip([0, *cuts], [*cuts, keys - people], strict=True)]
        self.seed = seed

    @property
    def uri(self) -> str:
        return "s3://synthetic/vggface2"

    def list(self, prefix: str = "", **_: Any) -> Iterator[Entry]:
        for person, count in enumerate(self.counts, 1):
            for photo in range(1, count + 1):
                key = f"train/n{person:06d}/{photo:06d}_01.jpg"
                if key.startswith(prefix):
                    digest = hashlib.md5(f"{self.seed} {key}".encode(), usedforsecurity=False).hexdigest()
                    yield Entry(key, 20_000 + int(digest[:4], 16), digest)

    def get(self, key: str, limit: int | None = None) -> bytes:
        raise NotImplementedError("the collection is only listed")

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        raise NotImplementedError("the collection is only listed")

    def put_file(self, key: str, file: Path) -> None:
        raise NotImplementedError("the collection is only listed")

    def put_if_absent(self, key: str, data: bytes) -> bool:
        raise NotImplementedError("the collection is only listed")

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        raise NotImplementedError("the collection is only listed")

    def tag(self, key: str) -> str | None:
        return None  # asked for the official lists only

    def age(self, key: str) -> float | None:
        return None

    def delete(self, key: str) -> None:
        raise NotImplementedError("the collection is only listed")

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"


def plan_figures(found: Iterator[Identity]) -> Figures:
    """Count a plan and digest it: every identity, key and tag in the order they come."""
    photos = people = 0
    digest = hashlib.sha256()
    for identity in found:
        people += 1
        photos += len(identity.photos)
        for photo in (*identity.photos, *identity.clean):
            digest.update(json.dumps([identity.name, photo.key, photo.tag]).encode())
    return {"photos": photos, "people": people, "sha256": digest.hexdigest()}


def measure_identities(storage: Storage) -> Figures:
    """Go through the identities of the collection once."""
    return plan_figures(find_identities(storage, layout="vggface2"))


def measure_plan(storage: Storage) -> Figures:
    """Make the whole plan, with its two files."""
    mock.patch.object(plan, "open_storage", lambda *_: storage).start()
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(input=storage.uri, output=f"{folder}/none", layout="vggface2")
        found = plan.make_plan(config, folder=Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "photos": found.photos,
        "people": found.identities,
        "tasks": found.todo,
        "files (MB)": round(size / 1e6),
        "sha256": found.plan_hash,
    }


MEASUREMENTS: dict[str, Callable[[Storage], Figures]] = {
    "find_identities": measure_identities,
    "make_plan": measure_plan,
}


def measure(name: str, keys: int, people: int) -> Figures:
    """Run one measurement in this process."""
    storage: Any = Synthetic(keys, people)
    start = time.perf_counter()
    figures = MEASUREMENTS[name](storage)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    return {"seconds": round(seconds, 1), "peak RSS (MB)": round(peak), **figures}


def main() -> int:
    """Run every measurement twice, each in a process of its own; 1 when two plans of the same keys differ."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--keys", type=int, default=3_300_000)  # VGGFace2 has 3.31 M photos
    parser.add_argument("--people", type=int, default=9131)
    parser.add_argument("--measure", choices=MEASUREMENTS, help="run this one here, and print JSON")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.keys, args.people)))
        return 0
    different = 0
    for name in MEASUREMENTS:
        command = [sys.executable, "-m", "tests.bench.planning", "--measure", name]
        command += ["--keys", str(args.keys), "--people", str(args.people)]
        runs = [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(2)]
        table = Table("run", *runs[0], title=f"{name}, {args.keys} keys, {args.people} people")
        for number, figures in enumerate(runs, 1):
            table.add_row(str(number), *map(str, figures.values()))
        Console(width=160).print(table)
        equal = runs[0]["sha256"] == runs[1]["sha256"]
        print(f"{name}: the two plans are {'equal' if equal else 'DIFFERENT'}")
        different += not equal
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
