"""The one command of a GPU machine keeps what it has measured, whatever happens to a step."""

import json
from pathlib import Path

from tests.bench import card


def test_each_step_is_stored_with_its_lines_and_its_end(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    named = {"good": ["-c", "print('a'); print('b')"], "bad": ["-c", "print('c'); raise SystemExit(3)"]}
    assert not card.measure(named, file, minutes=5, say=lambda _: None)
    steps = json.loads(file.read_text())["steps"]
    assert (steps["good"]["lines"], steps["good"]["ended"]) == (["a", "b"], 0)
    assert (steps["bad"]["lines"], steps["bad"]["ended"]) == (["c"], 3)
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_a_step_beyond_the_time_is_stopped_and_its_lines_are_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    assert card.run(["-c", "import time; print('a', flush=True); time.sleep(600)"], 3.0, lines.append) is None
    assert lines == ["a"]


def test_without_time_nothing_starts(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    assert not card.measure({"one": ["-c", "print(1)"]}, file, minutes=0, say=lambda _: None)
    assert json.loads(file.read_text())["steps"]["one"] == {"ended": "not started"}


def test_every_step_is_a_command_of_this_repository(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    for arguments in card.steps(tmp_path).values():
        module = arguments[1].replace(".", "/") + ".py"
        assert arguments[1] == "pytest" or (root / module).is_file()
