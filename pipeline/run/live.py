"""Live view of a run: rates, actors and their identities, the last failures."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dladiff.errors import StorageError
from pipeline.records.loading import MAX_NOTE, load
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

RECENT = timedelta(minutes=10)
ACTORS, FAILURES = 16, 5  # most lines of each
EVERY = 2.0  # seconds between two reads of the actors' notes


def safe(text: object) -> str:
    """Return text from storage for rich: control characters and markup are escaped."""
    return escape(shown(str(text)))


@dataclass(frozen=True)
class Working:
    """A busy actor: host and pid, identity, start (UTC)."""

    where: str
    identity: str
    since: datetime


@dataclass
class Actors:
    """Busy actors, read from the start notes on storage, which actors delete when they end a task."""

    storage: Storage
    every: float = EVERY
    notes: dict[str, Working | None] = field(default_factory=dict)
    looked: float = -1e9

    def __call__(self) -> list[Working]:
        """Return the busy actors, longest first; while storage is out of reach, the last known ones."""
        if time.monotonic() - self.looked >= self.every:
            self.looked = time.monotonic()
            with suppress(StorageError):
                keys = [entry.key for entry in self.storage.list("starts/")][-10 * ACTORS :]
                self.notes = {key: self.notes[key] if key in self.notes else self._read(key) for key in keys}
        return sorted((w for w in self.notes.values() if w is not None), key=lambda w: w.since)

    def _read(self, key: str) -> Working | None:
        """Return the actor of a note; None if the note is unreadable, which is cached."""
        try:
            note = load(self.storage, key, MAX_NOTE)
            where, since = f"{note['host']}:{note['pid']}", datetime.fromisoformat(note["time"])
            # a time without a zone cannot be compared
            return Working(where, str(note["identity"]), since) if since.tzinfo else None
        except (StorageError, KeyError, TypeError, ValueError):
            return None


class Rate:
    """Photos an hour, since the start and over the last ten minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.started, self.photos = clock, clock(), 0
        self.ends: deque[tuple[float, int]] = deque()

    def add(self, photos: int) -> None:
        """Count photos done now."""
        self.photos += photos
        self.ends.append((self.clock(), photos))

    @property
    def lifetime(self) -> float:
        """Photos an hour since the start."""
        return self.photos / max(1e-9, self.clock() - self.started) * 3600

    @property
    def recent(self) -> float:
        """Photos an hour over the last ten minutes, or since the start if that is shorter."""
        now = self.clock()
        while self.ends and self.ends[0][0] < now - RECENT.total_seconds():
            self.ends.popleft()
        span = min(RECENT.total_seconds(), max(1e-9, now - self.started))
        return sum(photos for _, photos in self.ends) / span * 3600


def panel(head: RenderableType, facts: dict[str, Any], actors: Sequence[Working], failures: Sequence[str]) -> Group:
    """Return the view: a bar, one line of figures, a line for each actor, the last failures."""
    figures = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    parts: list[RenderableType] = [head, Text(figures)]
    if actors:
        table = Table("actor", "works on", "for", box=None, padding=(0, 2, 0, 0))
        now = datetime.now(UTC)
        for working in actors[:ACTORS]:
            table.add_row(safe(working.where), safe(working.identity), str(now - working.since).split(".")[0])
        parts.append(table)
        if len(actors) > ACTORS:
            parts.append(Text(f"and {len(actors) - ACTORS} more"))
    parts += [Text.from_markup(f"[red]{line}[/red]") for line in failures]
    return Group(*parts)
