"""A Ray head that a test starts and ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from dladiff.errors import StorageError
from pipeline.cluster import submit
from pipeline.run.local_ray import CLUSTERS
from tests.integration.ports import free_ports, is_free

ROOT = Path(__file__).resolve().parents[2]
PATH = os.defpath
"""Of every head, as where Ray was started by its full path: `dladiff` and `python` of the environment are not on it."""
STARTS = 3  # Ray gives up a raylet that a busy machine does not start within 30 s, which no setting changes
READY_S = 240  # only a failure, or a very busy machine, waits as long


@dataclass(frozen=True)
class Head:
    """Where a head is, and the token that it asks for."""

    dashboard: str
    gcs: str
    token: str
    group: int
    """Process group of the head and all that it started."""


@contextlib.contextmanager
def started_head(folder: str, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head in its own process group; end that group, and no other Ray.

    Its workers have `environment` beside that of this process. It asks for the token of
    `tests.integration.tokens.ray_token`, which is to be entered before.
    """
    assert os.environ.get("RAY_AUTH_MODE") == "token"
    for _ in range(STARTS):
        process, head, agent = _begun(folder, log, environment or {})
        try:
            if _is_ready(process, head, agent):
                yield head
                return
        finally:
            _ended(process)
    pytest.fail(f"the head did not start:\n{log.read_text()[-2000:]}")


def _begun(folder: str, log: Path, environment: Mapping[str, str]) -> tuple["subprocess.Popen[bytes]", Head, int]:
    """Return a head that starts, and the port of the agent that starts its jobs."""
    names = (
        "dashboard-port", "port", "node-manager-port", "object-manager-port", "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port", "ray-client-server-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=4"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    command += ["--object-store-memory=200000000", f"--temp-dir={folder}", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    inherited = os.environ | {
        "PATH": PATH,
        "PYTHONPATH": str(ROOT),  # the fake protector
        "DLADIFF_FAKE_SECONDS": "300",  # of the protector Slow: its job runs for as long as the test wants
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing is left to drain
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        CLUSTERS: "0",  # the node's address is loopback
    }
    inherited |= environment
    inherited.pop("RAY_ADDRESS", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=inherited, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    dashboard, gcs = (f"127.0.0.1:{ports[name]}" for name in ("dashboard-port", "port"))
    head = Head(f"http://{dashboard}", gcs, os.environ["RAY_AUTH_TOKEN"], process.pid)
    return process, head, ports["dashboard-agent-listen-port"]


def _is_ready(process: "subprocess.Popen[bytes]", head: Head, agent: int) -> bool:
    """Wait until the head takes jobs; return whether it does."""
    deadline = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(StorageError):
            submit.jobs(head.dashboard)
            if not is_free(agent):
                return True
        time.sleep(0.5)
    return False


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)  # `ray start --block` ends what it started
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
