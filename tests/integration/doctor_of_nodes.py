"""`dladiff doctor --address` on a cluster of nodes with different faults, in a process of its own.

    python -m tests.integration.doctor_of_nodes FOLDER S3_OUTPUT

Prints JSON: exit code and output of the command with a configuration, and with --json without one.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from pipeline.cli.main import main as dladiff
from pipeline.doctor import nodes
from tests.integration.patience import patient
from tests.integration.tokens import ray_token

NODE_S = 90.0  # seconds; a busy machine imports slowly


def version_of(folder: Path, number: str) -> str:
    """Return a PYTHONPATH on which dladiff is installed in another version."""
    info = folder / f"v{number}" / f"dladiff-{number}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dladiff\nVersion: {number}\n")
    return f"{info.parent}{os.pathsep}{os.environ['PYTHONPATH']}"


def pack(folder: Path) -> str:
    """Return the folder of a face pack named "mine"."""
    (folder / "packs" / "mine").mkdir(parents=True)
    for name in ("w600k_r50.onnx", "det_10g.onnx"):
        (folder / "packs" / "mine" / name).write_bytes(b"weights")
    return str(folder / "packs")


def look(address: str, *words: str) -> dict[str, Any]:
    """Run the command."""
    found = CliRunner().invoke(dladiff, ["doctor", "--address", address, *words])
    return {"code": found.exit_code, "lines": found.stdout.splitlines()}


def main() -> None:
    """Start the nodes, look, print."""
    from ray.cluster_utils import Cluster

    folder, output = Path(sys.argv[1]), sys.argv[2]
    (folder / "in" / "ann").mkdir(parents=True)
    (folder / "in" / "ann" / "1.png").write_bytes(b"x")
    settings = f"input: {folder / 'in'}\noutput: {output}\nfaces: [mine]\n"
    (folder / "run.yaml").write_text(settings)
    packs = pack(folder)
    kinds: dict[str, dict[str, Any]] = {
        "poor": {"num_gpus": 1, "env_vars": {"AWS_SECRET_ACCESS_KEY": "wrong", "DLADIFF_FACES": str(folder)}},
        "old": {"env_vars": {"PYTHONPATH": version_of(folder, "0.0.1"), "DLADIFF_FACES": packs}},
        "good": {"env_vars": {"DLADIFF_FACES": packs}},
        "stopped": {"env_vars": {"DLADIFF_FACES": packs}},
    }
    nodes.NODE_S = NODE_S
    with ray_token(), patient():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        started = {
            name: cluster.add_node(num_cpus=len(name), object_store_memory=100_000_000, **kind)
            for name, kind in kinds.items()
        }
        raylet = started["stopped"].all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGSTOP)
        try:
            found = {
                "table": look(cluster.address, "--config", str(folder / "run.yaml")),
                "json": look(cluster.address, "--json"),
            }
        finally:
            os.kill(raylet, signal.SIGCONT)
        cluster.shutdown()
    print(json.dumps(found), flush=True)
    os._exit(0)  # Ray's handlers at exit wait for a cluster that is gone


if __name__ == "__main__":
    main()
