"""Watches the head of a joined cluster: a driver that lost it would be ended by Ray after a minute, without a line."""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

from dladiff.errors import StorageError

LOST_S = 30.0
"""Seconds without a connection after which the head counts as lost; Ray ends the process after 60."""
LOOK_S, CONNECT_S = 2.0, 5.0
"""Seconds between two connections, and for one."""
END_S = 25.0
"""Seconds that a run has then to give its lease back and print; afterwards this thread ends the process."""
SIGNAL = signal.SIGUSR1
LOST = "the head of the Ray cluster is gone: finished work is kept; start the cluster again, and run the same command"


def place_of(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT. Raises ValueError."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def answers(place: tuple[str, int]) -> bool:
    """Return whether a process accepts connections there."""
    try:
        socket.create_connection(place, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


class HeadWatch:
    """Connects to the head's port in a thread; when it is lost, raises StorageError in the main thread.

    Use it in the main thread.
    """

    def __init__(self, address: str) -> None:
        """`address`: HOST:PORT of the head's GCS."""
        self.place = place_of(address)
        self.lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._before: Any = None

    def __enter__(self) -> "HeadWatch":
        """Start the thread."""
        self._before = signal.signal(SIGNAL, self._raise)
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End it; where the head is gone, raise StorageError, and let the thread end a process that stays."""
        if isinstance(error, Exception) and not self.lost:
            self.lost = not answers(self.place)  # Ray noticed it first
        if self.lost:
            signal.signal(SIGNAL, signal.SIG_IGN)
            raise StorageError(LOST) from error
        self._stop.set()
        self._thread.join(CONNECT_S + 1)
        signal.signal(SIGNAL, self._before)

    @staticmethod
    def _raise(_number: int, _frame: FrameType | None) -> None:
        raise StorageError(LOST)

    def _follow(self) -> None:
        seen = time.monotonic()
        while time.monotonic() - seen < LOST_S:
            if self._stop.wait(LOOK_S):
                return
            if answers(self.place):
                seen = time.monotonic()
        self.lost = True
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
        time.sleep(END_S)
        sys.stderr.write(f"error: {LOST}\n")
        sys.stderr.flush()
        os._exit(3)
