"""fitness: what actors report, who counts as at work, when tasks are returned, what the watch says."""

import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.run import fitness
from pipeline.run.fitness import Board, Fault, Watch


def fault(host: str = "h", reason: str = "no weights") -> Fault:
    return Fault(node=f"n-{host}", host=host, reason=reason, lasting=True)


class Call:
    """A method of the board as Ray offers it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class FakeRay:
    """Answers at once, in this process."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def get(self, value: Any, timeout: float = 0) -> Any:
        return value

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0}


def remote(board: Board) -> Any:
    return SimpleNamespace(state=Call(board.state), release=Call(board.release))


def test_the_board_counts_who_works_and_who_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    for actor in ("a", "b", "c"):
        board.began(actor)
    board.ended("a")
    board.failed("b", fault())
    state = board.state()
    assert (state.started, state.worked, state.busy, state.faults) == (3, 1, 1, [fault()])
    monkeypatch.setattr(fitness, "GONE_S", 0.0)
    assert board.state().busy == 0  # c gave no sign of life
    board.alive("c")
    monkeypatch.setattr(fitness, "GONE_S", 60.0)
    assert board.state().busy == 1


def followed(board: Board, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.3) -> list[list[Fault]]:
    """Watch a board for a while; return what was reported."""
    monkeypatch.setattr(fitness, "POLL_S", 0.02)
    reported: list[list[Fault]] = []
    with Watch(FakeRay(), remote(board), "2 CPUs and 1 GPUs", reported.append):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not board.may_return():
            time.sleep(0.01)
    return reported


def test_tasks_are_returned_when_nobody_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "IDLE_S", 0.05)
    monkeypatch.setattr(fitness, "NONE_FIT_S", 30.0)
    board = Board()
    board.began("fit")
    board.began("bad")
    board.failed("bad", fault())
    assert followed(board, monkeypatch) == [[fault()]]
    assert not board.may_return()  # the other is at work
    board.ended("fit")
    followed(board, monkeypatch, seconds=20)
    assert board.may_return()


def test_while_none_was_fit_others_may_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "IDLE_S", 0.0)
    board = Board()
    board.began("bad")
    board.failed("bad", fault())
    followed(board, monkeypatch)
    assert not board.may_return()
    monkeypatch.setattr(fitness, "NONE_FIT_S", 0.0)
    followed(board, monkeypatch, seconds=20)
    assert board.may_return()


def test_each_host_is_named_once_and_a_missing_worker_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fitness, "SAID_EVERY_S", 0.05)
    with caplog.at_level(logging.WARNING):
        followed(board := Board(), monkeypatch)
        waiting = [r.message for r in caplog.records]
        assert waiting and set(waiting) == {
            "waiting for a worker (an actor needs 2 CPUs and 1 GPUs; there: 8 CPUs, 0 GPUs)"
        }
        caplog.clear()
        for actor in ("a", "b"):
            board.began(actor)
            board.failed(actor, fault("node7"))
        followed(board, monkeypatch)
    assert [r.message for r in caplog.records] == ["a worker is taken out: node7: no weights"]
