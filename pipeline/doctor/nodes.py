"""The nodes of a cluster, as `dladiff doctor --address` shows them: a job on the head asks them, or this machine."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dladiff.errors import StorageError
from pipeline.cluster import sent
from pipeline.config import RunConfig
from pipeline.doctor.checks import SKEW_S, Check
from pipeline.process.temporary import temporary_folder
from pipeline.storage.keys import short
from pipeline.storage.open import local_path

PROBE = Path(__file__).with_name("probe.py")
FOUND = "dladiff-nodes: "  # as the probe prints it
NODE_S = 180.0  # seconds for one node's answer: storage that does not answer takes up to a minute, a GPU check two
START_S = 120.0  # seconds for the probe's own start: Ray's client, the job's environment
POLL_S = 0.5  # seconds between two looks at the job
MAX_TEXT = 300  # characters of a node's text
COLUMNS = ("node", "address", "dladiff", "Python", "torch", "models", "input", "storage", "GPU", "clock")
STATES = ("models", "input", "storage", "gpu")  # checks with a column


@dataclass(frozen=True)
class Node:
    """What a node of the cluster answered."""

    host: str
    address: str
    worker: bool
    """Whether an actor of the run fits on it."""
    versions: dict[str, str]
    checks: tuple[Check, ...]
    clock_s: float | None
    """Its clock minus the driver's; None: no answer."""

    @property
    def ok(self) -> bool:
        """Return whether every check holds."""
        return all(check.ok for check in self.checks)

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        has = {check.name: check.ok for check in self.checks}
        states = (("ok" if has[name] else "FAIL") if name in has else "-" for name in STATES)
        clock = "-" if self.clock_s is None else f"{self.clock_s:+.1f} s"
        versions = (self.versions.get(name) or "-" for name in ("dladiff", "python", "torch"))
        return (self.host, self.address, *versions, *states, clock)

    def faults(self) -> list[str]:
        """Return a line for each check that fails."""
        return [
            f"FAIL  {self.host} ({self.address}): {check.name}: {check.text}" for check in self.checks if not check.ok
        ]

    def facts(self) -> dict[str, Any]:
        """Return the node as plain values."""
        checks = [{"name": check.name, "ok": check.ok, "text": check.text} for check in self.checks]
        plain = {"host": self.host, "address": self.address, "worker": self.worker, "ok": self.ok}
        return plain | {"versions": self.versions, "clock_s": self.clock_s, "checks": checks}


def table(nodes: Sequence[Node]) -> list[str]:
    """Return the lines of a table with a row a node, then the faults."""
    rows = [COLUMNS, *(node.cells() for node in nodes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, *(line for node in nodes for line in node.faults())]


def cluster_nodes(address: str, config: RunConfig | None = None, output: str | None = None) -> list[Node]:
    """Ask every node of a cluster; one that does not answer within NODE_S has a check that says so.

    With http the Jobs API runs the question on the head, else this machine asks, as a driver does. Raises StorageError.
    """
    uri = output or (config.output if config else None)
    path = local_path(uri) if uri else None
    request = {
        "version": version("dladiff"),
        "config": config.to_dict() if config else None,
        "actor": {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor} if config else {},
        "output": uri,
        "folder": str(path.absolute()) if path else None,
        "limit_s": NODE_S,
    }
    with temporary_folder() as folder:
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        text = _by_job(address, folder) if address.startswith("http") else _from_here(address, folder)
    found = [line.removeprefix(FOUND) for line in text.splitlines() if line.startswith(FOUND)]
    if not found:
        last = (text.strip() or "nothing was printed").splitlines()[-1]
        raise StorageError(f"the nodes of the cluster could not be asked: {short(last, MAX_TEXT)}")
    answer = json.loads(found[-1])
    if "error" in answer:
        hint = "" if address.startswith("http") else "; give the dashboard's address, for example http://head:8265"
        raise StorageError(f"this machine cannot join the cluster: {short(answer['error'], MAX_TEXT)}{hint}")
    return sorted((_node(facts) for facts in answer["nodes"]), key=lambda node: (node.host, node.address))


def _node(facts: dict[str, Any]) -> Node:
    """Return a node; its texts are data."""
    checks = [Check(short(name), bool(ok), short(text, MAX_TEXT)) for name, ok, text in facts.get("checks", ())]
    if "error" in facts:
        checks.append(Check("answer", False, short(facts["error"], MAX_TEXT)))
    skew = facts.get("clock_s")
    if skew is not None and abs(skew) - facts["round_trip_s"] / 2 > SKEW_S:
        checks.append(Check("clock", False, f"{skew:+.0f} s from the driver's, more than {SKEW_S:.0f} s: set up NTP"))
    versions = {name: short(str(text)) for name, text in facts.get("versions", {}).items()}
    host, address = short(str(facts["host"])), short(str(facts["address"]))
    return Node(host, address, bool(facts["worker"]), versions, tuple(checks), None if skew is None else round(skew, 3))


def _from_here(address: str, folder: Path) -> str:
    """Run the probe on this machine; in a process of its own, which ends with Ray's client."""
    environment = os.environ | {
        "RAY_ADDRESS": address,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    command = [sys.executable, str(PROBE), str(folder / "request.json")]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=START_S + NODE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"the cluster did not answer within {START_S + NODE_S:.0f} s") from error
    return done.stdout if FOUND in done.stdout else done.stderr


def _by_job(address: str, folder: Path) -> str:
    """Run the probe as a job on the head and return its log; the job is deleted from the cluster's list."""
    from pipeline.cluster.submit import ENDED, answered, connected

    client, name = connected(address), f"doctor-{uuid.uuid4().hex[:12]}"
    sent.put(folder, [PROBE])
    answered(
        lambda: client.submit_job(
            entrypoint=sent.command(PROBE, "request.json"),
            submission_id=name,
            runtime_env={"working_dir": str(folder)},
            entrypoint_num_cpus=0,
        )
    )
    until = time.monotonic() + START_S + NODE_S
    try:
        while answered(lambda: client.get_job_status(name)).value not in ENDED:
            if time.monotonic() > until:
                raise StorageError(f"the cluster did not answer within {START_S + NODE_S:.0f} s")
            time.sleep(POLL_S)
        return str(answered(lambda: client.get_job_logs(name)))
    finally:
        with suppress(Exception):  # of a head that is gone
            client.stop_job(name)
            client.delete_job(name)
