"""SIGINT and SIGTERM: the first raises KeyboardInterrupt, later ones are ignored, so that the cleanup is not cut off.

Timers, containers and clusters send SIGTERM, some twice or to a whole process group. Only SIGKILL ends a cleanup.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """Whether this process was interrupted."""

    interrupted = False


def once(_number: int = 0, _frame: FrameType | None = None) -> None:
    """Handle a signal. Raises KeyboardInterrupt at the first."""
    if not _State.interrupted:
        _State.interrupted = True
        raise KeyboardInterrupt


def interrupted() -> KeyboardInterrupt:
    """Return the exception for an interruption that another handler noticed; later signals are ignored."""
    _State.interrupted = True
    return KeyboardInterrupt()


def install() -> None:
    """Handle the signals by `once`, in the main thread only. A SIGINT that is ignored (nohup, a job) stays ignored."""
    if threading.current_thread() is not threading.main_thread():  # other threads cannot set handlers
        return
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, once)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Handle the signals by `once`; at the end of the context the earlier handlers count again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    _State.interrupted = False
    install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.interrupted = False
