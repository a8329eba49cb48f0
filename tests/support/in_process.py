"""Runs of the driver without Ray."""

import io
import json
from collections.abc import Generator
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.records import manifest
from pipeline.run.actor import ProtectIdentity
from pipeline.run.driver import Summary, protect
from pipeline.run.todo import Todo
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.kept import kept_decoders
from tests.support.photo_bytes import flat_photo


def in_process(config: RunConfig, todo: Todo, target: Storage, run_id: str, *_: Any) -> Generator[dict[str, Any]]:
    """Yield the results of tasks that run in this process, in the order in which Ray gets them."""
    worker = ProtectIdentity(config.to_dict(), run_id, config.config_digest())
    rows = list(todo.rows())
    with kept_decoders():
        for number in todo.order():
            yield json.loads(worker(rows[number])["result"])


class Scene:
    """An input and its output below one address."""

    def __init__(self, uri: str) -> None:
        self.source, self.output = (open_storage(f"{uri}/{name}", create=True) for name in ("in", "out"))
        self.config = RunConfig(
            input=self.source.uri,
            output=self.output.uri,
            protector="tests.support.fakes:AddNoise",
            max_photos_per_task=2,
        )

    def fill(self) -> None:
        """Write photos of three people."""
        for number, place in enumerate(("ann/1", "ann/2", "ann/3", "ann/4", "ann/5", "bob/1", "cleo/1", "cleo/2")):
            self.source.put(f"{place}.png", flat_photo(20 * number))

    def run(self) -> Summary:
        """Protect what is new."""
        return protect(self.config, console=Console(quiet=True))

    def manifest(self, name: str = "photos") -> list[dict[str, Any]]:
        """Return the rows of a manifest."""
        found: list[dict[str, Any]] = pq.read_table(io.BytesIO(self.output.get(f"manifest/{name}.parquet"))).to_pylist()
        return found

    def equal_to_a_rebuilt_one(self) -> bool:
        """Build the manifests from all records; return whether no byte changes."""
        before = [self.output.get(key) for key in manifest.FILES]
        manifest.write_manifest(self.output, force=True)
        return before == [self.output.get(key) for key in manifest.FILES]
