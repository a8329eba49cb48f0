"""Which workers of a cluster can work: actors report on a board, and a watch in the driver takes bad nodes out.

A worker without weights, with wrong credentials or with a broken GPU would answer every task with a failure within
seconds, and so empty the queue. Here its actor reports the fault once and then keeps its task, while others work on.
When they have nothing left to do, the driver lets it go: it returns its tasks, which run again on other nodes.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between two looks at the board."""
IDLE_S = 10.0
"""Seconds without a task at work after which actors that wait with a fault return their tasks."""
NONE_FIT_S = 60.0
"""The same where no actor has ended a task yet: other nodes may still start."""
BEAT_S, GONE_S = 5.0, 60.0
"""Seconds between two signs of life of an actor, and without one after which it counts as gone."""
JOIN_S = 5.0
"""Seconds that the end waits for the thread, which may ask a cluster that does not answer."""
SAID_EVERY_S = 60.0
"""Seconds between two messages that no worker is there."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a worker cannot work."""

    node: str
    """Ray's id of the node."""
    host: str
    reason: str
    lasting: bool
    """Whether it is the worker's models or settings; else its storage."""

    def line(self) -> str:
        """Return host and reason."""
        return f"{self.host}: {self.reason}"


@dataclass
class State:
    """What actors have reported."""

    started: int = 0
    """Actors that began a task."""
    worked: int = 0
    """Tasks that ended on a fit actor."""
    busy: int = 0
    """Tasks at work now, without those of actors with a fault."""
    idle_s: float = 0.0
    """Seconds since the last report."""
    faults: list[Fault] = field(default_factory=list)


class Board:
    """The reports of a stage's actors; itself a Ray actor without CPUs."""

    def __init__(self) -> None:
        self.busy: dict[str, bool] = {}
        self.seen: dict[str, float] = {}
        self.faults: dict[str, Fault] = {}
        self.worked, self.released, self.last = 0, False, time.monotonic()

    def alive(self, actor: str) -> None:
        """Note a sign of life."""
        self.seen[actor] = time.monotonic()

    def began(self, actor: str) -> None:
        """Note that an actor began a task."""
        self.busy[actor] = True
        self.last = self.seen[actor] = time.monotonic()

    def ended(self, actor: str) -> None:
        """Note that it ended the task, whatever the result."""
        self.busy[actor] = False
        self.worked += 1
        self.last = time.monotonic()

    def failed(self, actor: str, fault: Fault) -> None:
        """Note that an actor cannot work."""
        self.faults[actor] = fault
        self.last = time.monotonic()

    def release(self) -> None:
        """Let actors with a fault return their tasks."""
        self.released = True

    def may_return(self) -> bool:
        """Return whether they may."""
        return self.released

    def state(self) -> State:
        """Return what was reported so far."""
        now = time.monotonic()
        busy = [
            a for a, at_work in self.busy.items() if at_work and a not in self.faults and now - self.seen[a] < GONE_S
        ]
        return State(len(self.busy), self.worked, len(busy), now - self.last, list(self.faults.values()))


class Reporter:
    """An actor's side of the board."""

    def __init__(self, board: Any) -> None:
        import ray

        context = ray.get_runtime_context()
        self.board, self.get = board, ray.get
        self.node = context.get_node_id()
        self.actor = f"{self.node}:{os.getpid()}"
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self.board.alive.remote(self.actor)

    def began(self) -> None:
        """Report the begin of a task."""
        self.get(self.board.began.remote(self.actor))

    def ended(self) -> None:
        """Report its end."""
        self.get(self.board.ended.remote(self.actor))

    def wait_with(self, reason: str, *, lasting: bool) -> None:
        """Report a fault, and wait until the driver has no other work to wait for."""
        fault = Fault(node=self.node, host=socket.gethostname(), reason=reason, lasting=lasting)
        self.get(self.board.failed.remote(self.actor, fault))
        while not self.get(self.board.may_return.remote()):
            time.sleep(POLL_S)


class Watch:
    """Follows a board in a thread of the driver: reports faults and missing workers, and releases tasks."""

    def __init__(
        self,
        ray: Any,
        board: Any,
        wanted: str,
        report: Callable[[list[Fault]], None],
        earlier: tuple[Fault, ...] = (),
    ) -> None:
        """`wanted`: what an actor asks for, for messages.

        `report` takes all faults, those of `earlier` stages too, whenever there are new ones.
        """
        self.ray, self.board, self.wanted, self.report, self.earlier = ray, board, wanted, report, earlier
        self.state = State()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watch":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._stop.set()
        self._thread.join(JOIN_S)

    def look(self) -> State:
        """Return the board's state now; the last known one if the cluster does not answer."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.state = self.ray.get(self.board.state.remote(), timeout=30)
        return self.state

    def _follow(self) -> None:
        known, said = set[Fault](), time.monotonic()
        while not self._stop.wait(POLL_S):
            state = self.look()
            if new := set(state.faults) - known:
                known |= new
                for fault in sorted({f.line() for f in new}):
                    log.warning("a worker is taken out: %s", fault)
                self.report([*self.earlier, *state.faults])
            if not state.started and time.monotonic() - said >= SAID_EVERY_S:
                said = time.monotonic()
                log.warning("waiting for a worker (%s)", self._missing())
            if state.faults and not state.busy and state.idle_s >= (IDLE_S if state.worked else NONE_FIT_S):
                with contextlib.suppress(self.ray.exceptions.RayError):
                    self.ray.get(self.board.release.remote(), timeout=30)

    def _missing(self) -> str:
        have = self.ray.cluster_resources()
        return f"an actor needs {self.wanted}; there: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
