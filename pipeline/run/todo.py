"""The actors' work of a run: one row a task, in a temporary file, and the order in which the tasks start."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.records.manifest import ParquetFile
from pipeline.records.schema import TODO
from pipeline.sources.find import Photo


class Todo(ParquetFile):
    """Tasks in the order of the plan."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, TODO)
        self.photos = 0
        self._costs: list[tuple[int, int]] = []

    def task(self, work: dict[str, Any], photos: Sequence[Photo]) -> None:
        """Append the work of a task, and the photos that it protects."""
        self.add({"work": json.dumps(work)})
        self.photos += len(photos)
        self._costs.append((len(photos), sum(photo.size for photo in photos)))

    def order(self) -> list[int]:
        """Return the numbers of all rows, longest task first, so that no long one is left when the others end.

        The method works on squares of one size, so photos decide; of equal counts the one with more bytes, which takes
        longer to read, comes first.
        """
        return sorted(range(self.count), key=self._costs.__getitem__, reverse=True)
