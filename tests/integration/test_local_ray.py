"""A local run as somebody else on the machine or the network meets it: real clients, real sockets, real files."""

import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.run import engine
from pipeline.run.driver import Summary, protect
from pipeline.run.local_ray import CLUSTERS
from pipeline.storage.open import open_storage
from tests.faults.harness import until
from tests.integration.heads import Head
from tests.integration.tokens import ray_token
from tests.support.photo_bytes import flat_photo

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("collected"), pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).resolve().parents[2]
SECRET = "only-for-the-run"
CLIENT = """
import os, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("GOT", ray.get(ray.remote(num_cpus=0)(lambda: os.environ.get("AWS_SECRET_ACCESS_KEY")).remote(), timeout=60))
"""
CLIENT_S = 240  # a client that is neither let in nor refused by then
NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


@contextmanager
def running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Summary]]:
    """A real run of `protect` in a thread, which goes on until the block ends; its summary is in the list then."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    gate = folder / "gate"
    monkeypatch.setenv("DLADIFF_FAKE_GATE", str(gate))
    photos = open_storage(str(folder / "in"), create=True)
    photos.put("ann/1.png", flat_photo(7))
    config = RunConfig(
        input=str(folder / "in"), output=str(folder / "out"), protector="tests.support.fakes:WaitsAtGate"
    )
    ended: list[Summary] = []
    run = threading.Thread(target=lambda: ended.append(protect(config)))
    run.start()
    try:
        output = folder / "out" / "starts" / "ann"
        until(lambda: output.is_dir() and list(output.glob("*.json")), "the identity's start")
        yield ended
    finally:
        gate.touch()
        run.join()


def client(address: str, **settings: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | settings
    environment |= {"HOME": str(Path(tempfile.gettempdir()) / "nobody"), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {CLUSTERS: "0"}  # else Ray's client makes the machine's own address of the loopback one
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> str:
    try:
        return process.communicate(timeout=CLIENT_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def family(pid: int) -> set[int]:
    """This process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, left = set[int](), [pid]
    while left:
        found.add(one := left.pop())
        left += children.get(one, [])
    return found


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses (hex, as the kernel writes them) and ports on which these processes listen."""
    inodes = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(handle.readlink()))
            except FileNotFoundError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                host, port = fields[1].split(":")
                found.add((host, int(port, 16)))
    return found


def is_loopback(host: str) -> bool:
    """127.0.0.0/8, also mapped into IPv6, or ::1, in the kernel's byte order."""
    return re.fullmatch(r"(0{16}FFFF0000)?[0-9A-F]{6}7F", host) is not None or host == "0" * 24 + "01000000"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's tables of sockets")
def test_a_local_run_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, monkeypatch) as ended:
        import ray

        address = ray.get_runtime_context().gcs_address
        token = os.environ["RAY_AUTH_TOKEN"]
        clients = {
            "its own token": client(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token),
            "no token": client(address, RAY_AUTH_MODE="token"),
            "no mode": client(address),
            "a wrong token": client(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
            "authentication off": client(address, RAY_AUTH_MODE="disabled"),
        }
        answers = {name: said(process) for name, process in clients.items()}
        assert f"GOT {SECRET}" in answers.pop("its own token")  # so the others are refused, not merely out of reach
        assert [name for name, text in answers.items() if "GOT" in text or SECRET in text] == []
        refusal = re.compile("authenti|Unauthenticated|token", re.IGNORECASE)
        assert [text for text in answers.values() if not refusal.search(text)] == []

        sockets = listening(family(os.getpid()))
        assert len(sockets) > 5
        assert [place for place in sockets if not is_loopback(place[0])] == []

        folder = Path(ray._private.worker._global_node.get_session_dir_path()).parents[1]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.name.startswith("dl-")
    assert [summary.done for summary in ended] == [1]
    assert not folder.exists()
    assert os.environ.get("RAY_AUTH_TOKEN") != token


def test_each_run_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # which a local run does not take over
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tokens = []
    for _ in range(2):
        with engine.started() as ray:
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1
    assert len(set(tokens)) == 2 and all(len(token) == 64 for token in tokens)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_recorded_cluster_is_not_joined(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray start` notes its address, people keep a token in their home; a local run uses neither."""
    from ray._private.services import find_bootstrap_address

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # in whose folder ray/ a client looks for the note
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(head.gcs)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(head.token)
    with ray_token(head.token):
        assert find_bootstrap_address(None) == head.gcs
    with engine.started() as ray:
        assert ray.get_runtime_context().gcs_address != head.gcs
        assert os.environ["RAY_AUTH_TOKEN"] != head.token
        assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1


@pytest.mark.usefixtures("cluster")
def test_a_cluster_that_is_named_is_joined_with_its_own_token(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    with engine.started() as ray:
        assert ray.get_runtime_context().gcs_address == head.gcs
        assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1
