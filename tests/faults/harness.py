"""Runs of the command as real processes, struck in the middle, and what must hold on storage afterwards."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from pipeline.storage.base import Storage
from pipeline.storage.keys import escape
from pipeline.storage.open import open_storage
from tests.support.photo_bytes import flat_photo

PEOPLE = ("ann", "bob", "cleo", "dora")
OUTCOMES: list[tuple[str, str]] = []
"""Fault and outcome of every test that held."""
PATIENT_S = 240  # until an event is given up; generous, since the machine may be busy


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` is true and return its value."""
    deadline = time.monotonic() + PATIENT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


def note(fault: str, outcome: str) -> None:
    """Add a row to the table."""
    OUTCOMES.append((fault, outcome))


@dataclass
class Ended:
    """What one call of `dladiff protect` printed and returned."""

    code: int
    facts: dict[str, Any]
    errors: str


@dataclass
class Scene:
    """An input of some identities, an output, and the command between them."""

    source: str
    target: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 1.0
    constants: dict[str, Any] = field(default_factory=dict)
    """Constants of the program to change: "module:NAME" to a value."""

    def fill(self, *identities: str, photos: int = 2) -> None:
        """Write the input."""
        storage = open_storage(self.source, create=True)
        for n, identity in enumerate(identities):
            for i in range(photos):
                storage.put(f"{identity}/{i}.png", flat_photo(10 * n + i))

    @property
    def output(self) -> Storage:
        """The output, opened anew."""
        return open_storage(self.target, create=True)

    def start(self) -> "subprocess.Popen[str]":
        """Begin a run in a process of its own."""
        config = self.folder / "run.yaml"
        values = {"input": self.source, "output": self.target, "protector": "tests.support.fakes:Slow", "max_actors": 2}
        config.write_text(yaml.safe_dump(values | {"max_starts": 3} | self.settings))
        environment = os.environ | {"DLADIFF_FAKE_SECONDS": str(self.seconds)} | self.environment
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        environment["DLADIFF_TEST_CONSTANTS"] = json.dumps(self.constants)
        program = "tests.faults.hasty" if self.constants else "pipeline"
        command = [sys.executable, "-m", program, "protect", "--config", str(config), "--json"]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            return subprocess.Popen(
                command,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def end(self, process: "subprocess.Popen[str]") -> Ended:
        """Wait for a run's end."""
        out, errors = process.communicate(timeout=PATIENT_S)
        return Ended(process.returncode, json.loads(out) if out.strip() else {}, errors)

    def run(self) -> Ended:
        """Run to the end."""
        return self.end(self.start())

    def starts(self, identity: str = "") -> list[dict[str, Any]]:
        """Notes of starts that have not ended."""
        notes = []
        for entry in list(self.output.list(f"starts/{escape(identity)}/" if identity else "starts/")):
            try:
                notes.append(json.loads(self.output.get(entry.key)))
            except Exception:  # it ended while we looked
                continue
        return notes

    def done(self) -> set[str]:
        """Identities with a commit record."""
        return {json.loads(self.output.get(e.key))["identity"] for e in list(self.output.list("done/"))}

    def kill_driver(self, process: "subprocess.Popen[str]") -> None:
        """End a driver and its Ray as a machine that is switched off does."""
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENT_S)


def check_sums(facts: dict[str, Any]) -> None:
    """planned == done + failed + quarantined + skipped."""
    parts = ("done", "failed", "quarantined", "skipped")
    assert facts["planned"] == sum(facts[name] for name in parts), facts


def check_storage(output: Storage) -> Counter[str]:
    """Checksums right, no duplicate, no orphan, manifest equal to the records; return photos by status."""
    named, sources, statuses = {}, [], Counter[str]()
    for folder in ("done/", "failed/"):
        for entry in list(output.list(folder)):
            record = json.loads(output.get(entry.key))
            for row in record["photos"]:
                sources.append(row["source_uri"])
                statuses[row["status"]] += 1
                if row.get("output_key"):
                    named[row["output_key"]] = row["output_sha256"]
    assert len(sources) == len(set(sources)), "a photo has two rows"
    stored = {entry.key for entry in output.list("photos/")}
    assert stored == set(named), f"orphans {stored - set(named)}, missing {set(named) - stored}"
    for key, sha in named.items():
        assert hashlib.sha256(output.get(key)).hexdigest() == sha, key
    rows = pq.read_table(io.BytesIO(output.get("manifest/photos.parquet"))).to_pylist()
    assert sorted(row["source_uri"] for row in rows) == sorted(sources)
    assert output.tag("lock.json") is None
    return statuses
