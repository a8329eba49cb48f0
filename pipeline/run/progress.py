"""Progress on the terminal: bar, rates and actors during a run, a table at its end."""

from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from statistics import fmean, median
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from pipeline.run.live import FAILURES, Rate, Working, panel, safe


class Progress:
    """Bar, rates, time left, cost with a price, actors and last failures; without a terminal plain lines."""

    def __init__(
        self,
        console: Console,
        total: int,
        cost: Callable[[], float | None] = lambda: None,
        actors: Callable[[], list[Working]] = list,
        *,
        verbose: bool = False,
    ) -> None:
        self.console, self.total, self.cost, self.actors = console, total, cost, actors
        self.lines = verbose or not console.is_terminal
        self.done = 0
        self.counts: Counter[str] = Counter()
        self.rate = Rate()
        self.failures: deque[str] = deque(maxlen=FAILURES)
        columns = (TextColumn("identities"), BarColumn(), MofNCompleteColumn())
        self.bar = Bar(*columns, console=console)
        self.task = self.bar.add_task("", total=total)
        self.live = Live(console=console, get_renderable=self.view, refresh_per_second=1, transient=True)

    def __enter__(self) -> Self:
        """Show the live view on a terminal."""
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the live view."""
        if self.console.is_terminal:
            self.live.stop()

    def facts(self) -> dict[str, Any]:
        """Return the current figures by label."""
        spent = self.rate.clock() - self.rate.started
        left = timedelta(seconds=round(spent / self.done * (self.total - self.done))) if self.done else None
        cost = self.cost()
        counts = {status: count for status, count in self.counts.items() if status != "done"}
        return counts | {
            "photos/h": f"{self.rate.lifetime:.0f}",
            "in the last minutes": f"{self.rate.recent:.0f}",
            "left": left,
            "cost": None if cost is None else f"{cost:.2f}",
        }

    def view(self) -> Group:
        """Return the current view."""
        return panel(self.bar, self.facts(), self.actors(), self.failures)

    def advance(self, result: dict[str, Any]) -> None:
        """Count and print one finished task."""
        self.done += 1
        self.counts[result["status"]] += 1
        self.rate.add(result["photos"] - result["failed_photos"])
        self.bar.update(self.task, advance=1)
        reason = f" ({safe(result['reason'])})" if result["reason"] else ""
        line = f"{self.done}/{self.total} {safe(result['identity'])}: {result['status']}{reason}"
        if result["status"] != "done":
            self.failures.append(f"{safe(result['identity'])}: {result['status']}{reason}")
        if self.lines:
            facts = self.facts()
            rate = f"{facts['photos/h']} photos/h, {facts['left']} left"
            cost = f", cost {facts['cost']}" if facts["cost"] is not None else ""
            self.console.print(f"{line}, {rate}{cost}", soft_wrap=True, highlight=False)
        elif result["status"] != "done":
            self.console.print(line, soft_wrap=True, highlight=False)


def closing_table(results: list[dict[str, Any]], tasks: int = 0) -> Table:
    """Return the final table: identity, photos, status, quality, mean cosine before and after by kind of encoder.

    Where `tasks` is more than the results given, the caption says that they are some of them.
    Quality is mean PSNR (dB), and lowest and median SSIMULACRA2 of the photos and of their faces.
    """
    names = ("identity", "photos", "status", "PSNR", "quality,\nin faces")
    about = "quality: SSIMULACRA2, lowest / median of the photos; 90 is not seen side by side\n"
    about += "similarity: cosine to the original, before -> after"
    if tasks > len(results):
        about += f"\n{len(results)} of {tasks} tasks, failures first kept; dladiff report shows all"
    table = Table(*names, "optimised encoders", "held-out encoders", caption=about)
    for result in sorted(results, key=lambda r: r["identity"]):
        rows = result["rows"]
        psnr = [row["psnr"] for row in rows if row["psnr"] is not None]
        count, lost = result["photos"], result["failed_photos"]
        table.add_row(
            safe(result["identity"]),
            str(count) if not lost else f"{count - lost} of {count}",
            result["status"],
            f"{fmean(psnr):.1f} dB" if psnr else "-",
            "\n".join(_visible(rows, name) for name in ("ssimulacra2", "ssimulacra2_face")),
            _moved(rows, optimised=True),
            _moved(rows, optimised=False),
        )
    return table


def _visible(rows: list[dict[str, Any]], name: str) -> str:
    """Return lowest and median of a score."""
    found = [row[name] for row in rows if row.get(name) is not None]
    return f"{min(found):.0f} / {median(found):.0f}" if found else "-"


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
