"""A Ray head that a test starts and ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dladiff.errors import StorageError
from pipeline.cluster import submit
from tests.integration.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
READY_S = 90


@contextlib.contextmanager
def started_head(folder: str, log: Path) -> Iterator[str]:
    """Start a head in its own process group and yield its dashboard; end that group, and no other Ray.

    It asks for the token of `tests.integration.tokens.ray_token`, which is to be entered before.
    """
    assert os.environ.get("RAY_AUTH_MODE") == "token"
    names = (
        "dashboard-port", "port", "node-manager-port", "object-manager-port", "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port", "ray-client-server-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    bin_folder = Path(sys.executable).parent
    command = [str(bin_folder / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    command += ["--object-store-memory=200000000", f"--temp-dir={folder}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),  # the fake protector
        "DLADIFF_FAKE_SECONDS": "300",  # of the protector Slow: its job runs for as long as the test wants
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing is left to drain
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    with log.open("wb") as output:
        head = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                submit.jobs(address)
                break
            except StorageError:
                if head.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the head did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.5)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)  # `ray start --block` ends what it started
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait(timeout=10)
