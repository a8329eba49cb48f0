"""What a person sees: a bar while the run goes on, a table at its end, and the state of an output."""

import io
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from statistics import fmean
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from pipeline.names import shown
from pipeline.plan import LATEST
from pipeline.records import Task, load, read_index
from pipeline.storage import Storage

RECENT = timedelta(minutes=10)


def safe(text: object) -> str:
    """Return text from storage fit for rich: control characters and markup made visible."""
    return escape(shown(str(text)))


class Progress:
    """Identities done, photos an hour, time left; plain lines when the console is no terminal."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.done = self.photos = 0
        self.started = time.monotonic()
        columns = (TextColumn("identities"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("starting", total=total)

    def __enter__(self) -> Self:
        """Show the bar."""
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self.bar.stop()

    def advance(self, result: dict[str, Any]) -> None:
        """Count one finished identity."""
        self.done += 1
        self.photos += result["photos"] - result["failed_photos"]
        hours = (time.monotonic() - self.started) / 3600
        left = timedelta(seconds=round(hours * 3600 / self.done * (self.total - self.done)))
        rate = f"{self.photos / hours:.0f} photos/h, {left} left" if hours else ""
        self.bar.update(self.task, advance=1, description=rate)
        reason = f" ({safe(result['reason'])})" if result["reason"] else ""
        line = f"{self.done}/{self.total} {safe(result['identity'])}: {result['status']}{reason}"
        if not self.console.is_terminal:
            self.console.print(f"{line}, {rate}", soft_wrap=True, highlight=False)
        elif result["status"] != "done":
            self.console.print(line, soft_wrap=True, highlight=False)


def closing_table(results: list[dict[str, Any]]) -> Table:
    """Build the table: identity, photos, status, PSNR (dB), mean cosine before and after by kind of encoder."""
    names = ("identity", "photos", "status", "PSNR", "optimised encoders", "held-out encoders")
    table = Table(*names, caption="similarity: cosine to the original, before -> after")
    for result in sorted(results, key=lambda r: r["identity"]):
        rows = result["rows"]
        psnr = [row["psnr"] for row in rows if row["psnr"] is not None]
        count, lost = result["photos"], result["failed_photos"]
        table.add_row(
            safe(result["identity"]),
            str(count) if not lost else f"{count - lost} of {count}",
            result["status"],
            f"{fmean(psnr):.1f} dB" if psnr else "-",
            _moved(rows, optimised=True),
            _moved(rows, optimised=False),
        )
    return table


def _moved(rows: list[dict[str, Any]], *, optimised: bool) -> str:
    pairs = [
        (s["before"], s["after"])
        for row in rows
        for s in row["similarity"] or []
        if s["optimised"] is optimised and s["before"] is not None and s["after"] is not None
    ]
    if not pairs:
        return "-"
    return f"{fmean(p[0] for p in pairs):.2f} -> {fmean(p[1] for p in pairs):.2f}"


def status(storage: Storage) -> dict[str, Any]:
    """Return done, failed, quarantined, left (of the latest plan), photos an hour lifetime and recent, hours left.

    In tasks: identities, or parts of those that were split. Reads storage only, so any machine can ask.
    """
    index = read_index(storage)
    planned = _planned(storage)
    standing = index.standing()
    if planned is not None:  # what an earlier plan left behind is not this one's progress
        standing = {task: row for task, row in standing.items() if planned.get(task, row.key) == row.key}
    counts = Counter(row.status for row in standing.values())
    left = 0 if planned is None else len(planned.keys() - standing.keys())
    rows = [row for row in standing.values() if row.status == "done" and row.started_at and row.finished_at]
    ends = [(datetime.fromisoformat(row.finished_at or ""), row.photos - row.failed_photos) for row in rows]
    starts = [datetime.fromisoformat(row.started_at or "") for row in rows]
    photos = sum(count for _, count in ends)
    span = (max(end for end, _ in ends) - min(starts)).total_seconds() / 3600 if ends else 0.0
    recent = sum(count for end, count in ends if end > datetime.now(UTC) - RECENT)
    rate = photos / span if span else 0.0
    hours = left * (photos / len(rows)) / rate if rate and rows else None
    return {
        "done": counts["done"],
        "failed": counts["failed"],
        "quarantined": counts["quarantined"],
        "left": left,
        "photos": photos,
        "photos_per_hour": round(rate, 1),
        "photos_per_hour_recent": round(recent / (RECENT.total_seconds() / 3600), 1),
        "hours_left": None if hours is None else round(hours, 2),
    }


def _planned(storage: Storage) -> dict[Task, str] | None:
    """The latest plan's tasks and keys; None before the first plan."""
    if storage.tag(LATEST) is None:
        return None
    place = load(storage, LATEST)["plan"]
    columns = ["identity", "part", "key"]
    rows = pq.read_table(io.BytesIO(storage.get(place)), columns=columns).to_pydict()
    return {(name, part): key for name, part, key in zip(*(rows[c] for c in columns), strict=True)}
