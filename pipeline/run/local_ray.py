"""Private Ray of a local run: token authentication, loopback addresses only, files in a private folder.

Ray executes code for every client that reaches its ports. Without these settings its processes listen on all
interfaces, and without authentication anyone on the network can run code as this user
(docs/decisions/0010-local-ray.md).
"""

import contextlib
import importlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dladiff.errors import StorageError
from pipeline.process.temporary import temporary_folder

CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
OBJECT_STORE = 200_000_000  # bytes; rows are small
SOCKET_PATH = 107  # longest path of a Unix socket, bytes
SESSION = len("/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")  # Ray appends this to its folder


@contextlib.contextmanager
def local_ray() -> Iterator[dict[str, Any]]:
    """Set the environment of a private Ray and yield the options of `ray.init`; restore the environment at the end.

    Enter it before importing Ray, which reads some variables then. Raises StorageError when the temporary folder's path
    is too long.
    """
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # for this run; its processes inherit it
        CLUSTERS: "0",  # makes the node's address loopback, on Linux too
    }
    # Ray's own folder has mode 0777; its parent keeps other users out
    with temporary_folder(short=True) as folder, _environment(settings):
        _check_length(folder)
        yield {
            "address": "local",  # never a cluster that an earlier `ray start` recorded on this machine
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "_temp_dir": str(folder / "r"),
        }


@contextlib.contextmanager
def own_process_groups() -> Iterator[None]:
    """Start Ray's processes in process groups of their own; enter it around `ray.init`.

    A SIGTERM to this process's group would end them first, and without its raylet Ray ends this process at once,
    before the lease is released. The kernel ends them when this process dies (fate sharing).
    """
    services: Any = importlib.import_module("ray._private.services")
    before = services.ConsolePopen

    def apart(*args: Any, **kwargs: Any) -> Any:
        return before(*args, **kwargs, process_group=0)

    services.ConsolePopen = apart
    try:
        yield
    finally:
        services.ConsolePopen = before


def check_authenticated() -> None:
    """Raise StorageError unless this process's Ray requires a token. Call it after Ray has started."""
    raylet: Any = importlib.import_module("ray._raylet")
    if raylet.get_authentication_mode() != raylet.AuthenticationMode.TOKEN:
        raise StorageError("Ray started without authentication; run dladiff in a process that has not used Ray before")


def _check_length(folder: Path) -> None:
    if len(os.fsencode(folder)) + SESSION > SOCKET_PATH:
        raise StorageError(f"the path {folder} is too long for Ray's sockets; set TMPDIR to a shorter one")


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    reread_environment()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        reread_environment()  # a cluster joined later has its own settings


def reread_environment() -> None:
    """Reset mode, token and address of an earlier run in a Ray that is already imported."""
    if "ray" in sys.modules:
        raylet: Any = importlib.import_module("ray._raylet")
        constants: Any = importlib.import_module("ray._private.ray_constants")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        constants.ENABLE_RAY_CLUSTER = os.environ.get(CLUSTERS) != "0"
