"""Rows and fields that a task's records have: of each photo, of the identity, of the task itself."""

from dataclasses import dataclass
from typing import Any

from pipeline.records import commit as records
from pipeline.records.checked import LAYERS
from pipeline.records.schema import PhotoRow

Payload = dict[str, Any]
"""JSON values: a row of Ray Data, the work of a task, or its result."""


@dataclass(frozen=True)
class TaskRows:
    """Makes the rows of one run."""

    run_id: str
    seed: int
    digest: str
    """Of the configuration, as the driver computed it: its files may differ from the worker's."""

    def photo(self, work: Payload, uri: str) -> PhotoRow:
        """Return the row of a photo before it is read."""
        layers = dict.fromkeys(LAYERS)
        return self._of_run(work) | {"source_uri": uri, "status": "failed", "reason": ""} | layers

    def identity(self, work: Payload, status: str, reason: str, lost: int) -> Payload:
        """Return the row of the identity; `lost`: photos that failed."""
        counts = {"photos": len(work["photos"]), "failed_photos": lost, "attempts": 0}
        return self._of_run(work) | {"status": status, "reason": reason, **counts, "finished_at": records.now()}

    def task(self, work: Payload) -> Payload:
        """Return the fields that every record of a task has."""
        return {name: work[name] for name in ("identity", "part", "parts", "key")} | {"run_id": self.run_id}

    def _of_run(self, work: Payload) -> Payload:
        """Return the columns that every row of the run has."""
        settings = {"seed": self.seed, "config_digest": self.digest}
        return {"run_id": self.run_id, "identity": work["identity"]} | settings
