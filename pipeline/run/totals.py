"""What the driver keeps of the tasks' results: counts and a few results to show; its size is independent of photos."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pipeline.run.actor import LATE
from pipeline.sources.decode import is_lasting

FAILED = ("failed", "quarantined")
SHOWN = 100  # results that are kept to show: more are not read on a terminal
SHOWN_ROWS = 6400  # photo rows of these results, about 10 MB: a hundred tasks of the default size


@dataclass
class Totals:
    """Counts of the results so far."""

    tasks: int = 0
    photos: int = 0
    """Photos of the tasks that ended; late ones were not started."""
    failed_photos: int = 0
    """Those of them that failed, alone or with their task."""
    lost_photos: int = 0
    """Those of them whose task is done."""
    mixed: set[str] = field(default_factory=set)
    """Identities whose photos show different people."""
    failures: int = 0
    """Failed tasks, and failed photos of other tasks."""
    lasting: int = 0
    """Failures that end in the same way with the same files."""
    shown: list[dict[str, Any]] = field(default_factory=list)
    """The first SHOWN results; later failures replace other results, and then earlier failures."""
    _rows: int = 0

    @classmethod
    def of(cls, results: Iterable[Mapping[str, Any]]) -> Self:
        """Return the counts of some results."""
        totals = cls()
        for result in results:
            totals.add(result)
        return totals

    def add(self, result: Mapping[str, Any]) -> None:
        """Count a task's result."""
        self.tasks += 1
        if result["status"] != LATE:
            self.photos += result["photos"]
            self.failed_photos += result["failed_photos"]
        if result["status"] == "done":
            self.lost_photos += result["failed_photos"]
        if result.get("mixed"):
            self.mixed.add(result["identity"])
        failed = [row["reason"] for row in result.get("rows", ()) if row["status"] == "failed"]
        if not failed and result["status"] in FAILED:
            failed = [result["reason"]]
        self.failures += len(failed)
        self.lasting += sum(map(is_lasting, failed))
        self._show(result)

    def _show(self, result: Mapping[str, Any]) -> None:
        if len(self.shown) == SHOWN:
            if result["status"] not in FAILED:
                return
            others = (i for i, one in enumerate(self.shown) if one["status"] not in FAILED)
            self._rows -= len(self.shown.pop(next(others, 0)).get("rows", ()))
        rows = result.get("rows", ())
        fits = self._rows + len(rows) <= SHOWN_ROWS
        self._rows += len(rows) if fits else 0
        self.shown.append(dict(result) | ({} if fits else {"rows": []}))
