"""A check of every node of a cluster, printed as one line of JSON.

    RAY_ADDRESS=... python probe.py REQUEST.json

`dladiff doctor --address` runs this file as a script, here or as a job. Ray then sends its code to the nodes, so a node
without dladiff, or with another version of it, can answer too. It imports no more than Ray at its top.
"""

import contextlib
import json
import logging
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOUND = "dladiff-nodes: "
"""Begin of the line with the result."""
PINGS = 3  # readings of a node's clock; the one with the shortest round trip counts
AT_ONCE = 64  # nodes asked at the same time: a thread each
PACKAGES = ("dladiff", "torch", "ray")
GPU_AS_IT_IS = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}  # Ray hides GPUs from what reserves none


class Probe:
    """Runs on a node as a Ray actor that reserves nothing, so it answers beside other work, and on any head."""

    def now(self) -> float:
        """Return this node's clock, seconds since the epoch."""
        return time.time()

    def look(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return versions and checks (name, whether it holds, text)."""
        versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
        return {"versions": versions, "checks": self._checks(request, versions["dladiff"])}

    def _checks(self, request: Mapping[str, Any], have: str) -> list[tuple[str, bool, str]]:
        wanted, where = request["version"], f"in {sys.executable}"
        if have != wanted:
            found = f"dladiff {have}" if have else "no dladiff"
            return [("version", False, f"{found} {where}; install dladiff {wanted}")]
        try:
            from pipeline.doctor.node import node_checks

            return [(check.name, check.ok, check.text) for check in node_checks(request)]
        except Exception as error:  # what the node's packages raise: one bad node must not hide the others
            return [("version", False, f"dladiff {have} {where} cannot check this node: {_line(error)}")]


def main() -> None:
    """Ask every node, and print."""
    import ray

    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
    except BaseException as error:
        print(FOUND + json.dumps({"error": _line(error)}), flush=True)
        os._exit(0)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with _marked(request["folder"]) as marker, ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda node: _asked(ray, node, {**request, "marker": marker}), nodes))
    print(FOUND + json.dumps({"nodes": found}), flush=True)
    os._exit(0)  # a node that does not answer would hold Ray's end up


def _asked(ray: Any, node: Mapping[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Return what a node answered within the request's `limit_s`, or why it did not."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    have = node["Resources"]
    holds = all(have.get(kind, 0) >= amount for kind, amount in request["actor"].items())
    facts = {"host": node["NodeManagerHostname"], "address": node["NodeManagerAddress"], "worker": holds}
    facts |= {"cpus": have.get("CPU", 0), "gpus": have.get("GPU", 0)}
    until = time.monotonic() + request["limit_s"]

    def answer(ref: Any) -> Any:
        return ray.get(ref, timeout=max(0.1, until - time.monotonic()))

    try:
        probe = (
            ray.remote(num_cpus=0)(Probe)
            .options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                runtime_env={"env_vars": GPU_AS_IT_IS},
            )
            .remote()
        )
        answer(probe.now.remote())  # starts its process
        readings = [_clock(answer, probe) for _ in range(PINGS)]
        facts["round_trip_s"], facts["clock_s"] = min(readings)
        looked: dict[str, Any] = answer(probe.look.remote(request | {"worker": holds, "gpus": facts["gpus"]}))
        return facts | looked
    except ray.exceptions.GetTimeoutError:
        return facts | {"error": f"no answer within {request['limit_s']:.0f} s"}
    except ray.exceptions.RayActorError as error:  # Ray stops waiting for a silent node by itself
        return facts | {"error": f"no answer, Ray gave the node up: {_line(error)}"}
    except Exception as error:  # of Ray: its environment cannot be set up
        return facts | {"error": _line(error)}


def _clock(answer: Any, probe: Any) -> tuple[float, float]:
    """Return round trip and the node's clock minus this machine's, both in seconds."""
    sent, begun = time.time(), time.monotonic()
    there = answer(probe.now.remote())
    trip = time.monotonic() - begun
    return trip, there - (sent + trip / 2)


@contextlib.contextmanager
def _marked(folder: str | None) -> Iterator[str | None]:
    """Put an empty file into the output's folder, or the nearest one above: nodes that do not see it have another."""
    if folder is None:
        yield None
        return
    place = Path(folder)
    while not place.exists():
        place = place.parent
    marker = place / f".tmp-{uuid.uuid4().hex}"
    try:
        marker.touch()
    except OSError:  # the checks of storage say so
        yield None
        return
    try:
        yield str(marker)
    finally:
        marker.unlink(missing_ok=True)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _line(error: BaseException) -> str:
    """Return the error on one line: Ray puts the cause behind a trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error))[:300]


if __name__ == "__main__":
    main()
