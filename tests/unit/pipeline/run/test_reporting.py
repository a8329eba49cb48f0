"""ReportingActor: a worker with another version of dladiff than the driver's does no task."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import run_config
from pipeline.run import reporting
from pipeline.run.reporting import UNFIT, ReportingActor


class Reports:
    """Stands in for Reporter, which needs a running Ray."""

    def __init__(self, board: list[Any]) -> None:
        self.board = board

    def began(self) -> None:
        self.board.append("began")

    def ended(self) -> None:
        self.board.append("ended")

    def wait_with(self, reason: str, *, lasting: bool) -> None:
        self.board.append((reason, lasting))


def test_another_version_is_a_fault_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "Reporter", Reports)
    config = run_config(None, {"input": str(tmp_path), "output": str(tmp_path / "out")})
    board: list[Any] = []
    actor = ReportingActor(board, dladiff="9.9.9", run=config.to_dict(), run_id="r", digest="d")
    for _ in range(2):
        result = json.loads(actor({"work": "{}"})["result"])
        assert (result["status"], result["work"]) == (UNFIT, "{}")
    began, (reason, lasting) = board
    assert began == "began" and lasting
    assert "the driver 9.9.9; install one version" in reason
    assert list(tmp_path.iterdir()) == []
