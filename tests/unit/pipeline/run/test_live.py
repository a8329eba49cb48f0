import io
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.records import commit as records
from pipeline.run.live import Actors, Rate
from pipeline.run.progress import Progress
from pipeline.run.status import watch
from pipeline.storage.open import open_storage


def result(identity: str, status: str = "done", reason: str = "", photos: int = 2) -> dict[str, Any]:
    return {"identity": identity, "status": status, "reason": reason, "photos": photos, "failed_photos": 0}


def console(**settings: Any) -> Console:
    return Console(file=io.StringIO(), width=100, **settings)


def printed(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_rates_are_photos_over_hours_and_the_recent_one_forgets() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    for minute in (1, 2, 59):
        now[0] = 60.0 * minute
        rate.add(10)
    assert (rate.lifetime, rate.recent) == (pytest.approx(30 / (59 / 60)), pytest.approx(60))
    now[0] = 60.0 * 90
    assert (rate.lifetime, rate.recent) == (pytest.approx(20), 0)


def test_actors_are_who_left_a_note_of_a_start(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, create=True)
    actors = Actors(storage, every=0)
    assert actors() == []
    place = records.write_start(storage, ("a/b", 0), "key", "run")
    (working,) = actors()
    assert (working.where, working.identity) == (f"{socket.gethostname()}:{os.getpid()}", "a/b")
    storage.delete(place)
    assert actors() == []


def test_terminal_shows_bar_rates_actors_and_the_last_failures_with_markup_made_visible(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, create=True)
    records.write_start(storage, ("[bold]who", 0), "key", "run")
    shown = console(force_terminal=True, no_color=True)
    progress = Progress(shown, 4, lambda: 1.5, Actors(storage, every=0))
    progress.advance(result("one"))
    progress.advance(result("[red]two", "failed", "no photo can be used"))
    text = console(no_color=True)
    text.print(progress.view())
    view = printed(text)
    assert "2/4" in view and "failed 1" in view and "cost 1.50" in view and "left 0:00" in view
    assert "[bold]who" in view and f":{os.getpid()}" in view
    assert "[red]two: failed (no photo can be used)" in view


def test_plain_lines_where_there_is_no_terminal_and_nothing_when_quiet() -> None:
    plain, quiet = console(), console(quiet=True)
    for shown in (plain, quiet):
        with Progress(shown, 2) as progress:
            progress.advance(result("one"))
            progress.advance(result("two", "failed", "why"))
    lines = printed(plain).splitlines()
    assert [line.split(",")[0] for line in lines] == ["1/2 one: done", "2/2 two: failed (why)"]
    assert "\x1b" not in printed(plain) and printed(quiet) == ""


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = console(force_terminal=True)
    progress = Progress(shown, 1)
    progress.advance(result("one", "failed", "why"))
    shown.print(progress.view())
    assert "\x1b[31m" not in printed(shown) and "why" in printed(shown)


def test_watching_looks_until_nothing_is_left_and_its_code_says_what_failed(tmp_path: Path) -> None:
    storage, shown = open_storage(tmp_path, create=True), console()
    record = {"identity": "a", "part": 0, "parts": 1, "key": "k", "photos": []}
    assert watch(storage, shown, 0) == 0
    records.fail(storage, record | {"status": "failed", "reason": "why", "attempts": 1})
    assert watch(storage, shown, 0) == 1
    live = console(force_terminal=True, no_color=True)
    assert watch(storage, live, 0) == 1
    assert "failed 0" in printed(shown) and "failed 1" in printed(shown)
    assert "a: failed (why)" in printed(live)
