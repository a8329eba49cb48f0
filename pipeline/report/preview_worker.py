"""The processes behind `dladiff preview`: each protects the photo with one strength at a time."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from dladiff.core.exchange import PhotoIn, PhotoOut
from dladiff.errors import DladiffError, ModelError


@dataclass(frozen=True, kw_only=True)
class Job:
    """The photo, and the method of one strength: module:class, its settings as plain values, seed, threads."""

    photo: PhotoIn
    protector: str
    settings: dict[str, Any]
    seed: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """The protected photo, the seconds that the method took (models loaded), deviations from the settings."""

    photo: PhotoOut
    seconds: float
    note: str


def protected(job: Job) -> Done:
    """Protect the photo; networks are imported here, never in the process of the command. Raises DladiffError."""
    module, _, name = job.protector.partition(":")
    try:
        protector = getattr(importlib.import_module(module), name)(job.settings, job.seed, job.threads)
    except DladiffError:
        raise
    except Exception as error:
        raise ModelError(f"the models cannot be loaded: {type(error).__name__}: {error}") from error
    started = time.monotonic()
    done = protector.protect_identity("", [job.photo], [])
    return Done(photo=done.photos[0], seconds=time.monotonic() - started, note=done.note)


@contextlib.contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of new processes. An exception, such as Ctrl-C, kills them instead of waiting for their work."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Prepare a worker: it ends with its parent, leaves Ctrl-C to it, and prints nothing on its stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # libraries print; stdout is for the command's result
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed and will never ask for more
