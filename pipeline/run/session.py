"""The Ray of a run: a private one, or the cluster of RAY_ADDRESS; started or joined quietly, and shut down in order."""

import atexit
import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from dladiff.errors import StorageError
from pipeline.process.interrupts import install, interrupted
from pipeline.run.head import HeadWatch, answers, place_of
from pipeline.run.local_ray import check_authenticated, local_ray, own_process_groups
from pipeline.storage.keys import shown

REINSTALL_S = 0.005  # seconds between two settings of the handlers: how long a second SIGTERM could kill this process
NO_TOKEN = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token, and RAY_AUTH_MODE=token"


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """Start a private Ray, or join RAY_ADDRESS, quietly and without usage statistics; shut it down at the end.

    Inside the context stdout goes to stderr: Ray prints about dead actors on stdout, which is for our result.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ code writes to the terminal
    joined = bool(address := os.environ.get("RAY_ADDRESS", ""))
    if joined and (place := _place(address)) and not answers(place):  # Ray would try for two minutes, without a line
        raise StorageError(
            f"no Ray cluster answers at RAY_ADDRESS={shown(address)}: start its head, or correct the address"
        )
    with contextlib.redirect_stdout(sys.stderr), _handlers_kept(), _options(joined) as options:
        import ray
        import ray.data

        try:
            # messages while it waits for a cluster are shown at once
            with contextlib.nullcontext() if joined else _quiet_start():
                ray.init(**options, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
        except SystemExit as error:  # Ray's handler raises it on SIGTERM
            raise interrupted() from error
        except ray.exceptions.AuthenticationError as error:
            raise StorageError(f"the Ray cluster refuses this client: {NO_TOKEN}") from error
        except Exception as error:  # Ray raises a bare Exception where a busy machine does not start it in time
            raise StorageError(_refusal(error, joined)) from error
        head = _head(ray) if joined else None
        try:
            if not joined:
                check_authenticated()
            install()  # the handlers of ray.init print a stack trace
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.max_errored_blocks = 0
            context.execution_options.preserve_order = False
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            with head or contextlib.nullcontext():
                yield ray
        finally:
            if head is not None and head.lost:  # Ray's shutdown would wait for it, and then end the process by itself
                atexit.register(os._exit, 3)
            else:
                _shut_down(ray)


def _place(address: str) -> tuple[str, int] | None:
    """Return host and port of a cluster's address; None for a name such as "auto"."""
    with contextlib.suppress(ValueError):
        return place_of(urlsplit(address).netloc if "://" in address else address)
    return None


def _refusal(error: Exception, joined: bool) -> str:
    """Return the line for a Ray that does not start. Ray calls a wrong token a failed connection."""
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    address = os.environ.get("RAY_ADDRESS", "")
    if joined and _place(address):
        return f"the Ray cluster at {shown(address)} answers, but does not take this client: {NO_TOKEN} ({reason})"
    return f"Ray does not start: {reason}"


def _head(ray: Any) -> HeadWatch | None:
    """Return a watch of the cluster's head; None in a thread, which signals do not reach."""
    if threading.current_thread() is not threading.main_thread():
        return None
    address = os.environ["RAY_ADDRESS"]
    client = address.startswith("ray://")  # its driver's counterpart is the client server
    return HeadWatch(urlsplit(address).netloc if client else ray.get_runtime_context().gcs_address)


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    with _without_log_level(), own_process_groups():
        yield


def _shut_down(ray: Any) -> None:
    """Shut Ray down. Its C++ code resets SIGTERM, so that one would kill this process: the handler is set again."""
    if threading.current_thread() is not threading.main_thread():
        ray.shutdown()
        return
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(ray.shutdown)
        while not done.done():
            install()
            wait([done], REINSTALL_S)
        install()
        done.result()


def _options(joined: bool) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """Return the options of `ray.init` for a private Ray; none when a cluster is joined."""
    return contextlib.nullcontext({}) if joined else local_ray()


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restore the SIGTERM handler at the end."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _without_log_level() -> Iterator[None]:
    """Remove Ray's line "Set ray log level" from stderr; other lines are printed at the end of the context.

    Ray has no setting against it (docs/decisions/0010-local-ray.md, which lists what was looked at).
    """
    with tempfile.TemporaryFile() as held:
        terminal = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            os.write(2, b"".join(line for line in held if b"Set ray log level" not in line))
