"""Checks of one node of a cluster, on that node: weights, input, output, GPUs."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dladiff.diffusion.catalogue import locate
from dladiff.diffusion.vae_catalogue import locate_vae
from dladiff.errors import DladiffError
from dladiff.faces import packs
from dladiff.layers.pushed import pushed_vaes
from dladiff.settings.schema import MethodConfig
from pipeline.config import RunConfig
from pipeline.doctor.checks import Check, input_check, model_check, storage_checks
from pipeline.models.fingerprint import SHIPPED

GPU_S = 120.0  # seconds for a sum on each GPU; importing torch takes most of it
SUM = """
import torch
count = torch.cuda.device_count()
for i in range(count):
    torch.ones(8, device=f"cuda:{i}").sum().item()
print(count)
"""


def node_checks(request: Mapping[str, Any]) -> Iterator[Check]:
    """Yield the checks that a request of `pipeline.doctor.nodes` asks for.

    Weights and GPUs are looked at where an actor of the run fits (`worker`).
    """
    config = RunConfig(**request["config"]) if request["config"] else None
    if config is not None:
        if request["worker"]:
            yield _weights(config)
        yield input_check(config)
    if request["output"]:
        yield _output(request["output"], request["marker"])
    if request["gpus"] and request["worker"]:
        yield gpu_check(int(request["gpus"]))


def _weights(config: RunConfig) -> Check:
    found = model_check(config)
    if found.ok and (fault := unreadable(config.method_config())):
        return Check("models", False, f"{fault}; this user must be able to read it")
    return found


def unreadable(method: MethodConfig) -> str | None:
    """Return the first file of local weights that cannot be opened, with the reason; None: all can."""
    try:
        for file in _files(method):
            with file.open("rb") as opened:
                opened.read(1)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except DladiffError as error:
        return str(error)
    return None


def _files(method: MethodConfig) -> Iterator[Path]:
    roots = [locate(method.model)] if method.trains_surrogate and not method.model.startswith("s3://") else []
    roots += [locate_vae(name) for name in pushed_vaes(method) if not name.startswith("s3://")]
    encoders = [*method.encoders, *method.held_out, method.detector]
    roots += [packs.located(n) for n in encoders if n != "centerface" and not n.startswith(SHIPPED)]
    for root in roots:
        yield from (root,) if root.is_file() else (p for p in sorted(root.rglob("*")) if not p.is_dir())


def _output(uri: str, marker: str | None) -> Check:
    """Check put, get, list, delete, the storage's clock, and by the driver's marker that a folder is the same one."""
    if marker is not None and not Path(marker).exists():
        return Check("storage", False, f"{uri} is another folder here than for the driver; mount one on every node")
    checks = storage_checks(uri)
    return next((Check("storage", False, c.text) for c in checks if not c.ok), checks[0])


def gpu_check(wanted: int) -> Check:
    """Check that torch computes on every GPU that Ray counts on this node; in a process of its own, which may hang."""
    try:
        done = subprocess.run([sys.executable, "-c", SUM], capture_output=True, text=True, timeout=GPU_S, check=False)
    except subprocess.TimeoutExpired:
        return Check("gpu", False, f"a sum on the GPU does not end within {GPU_S:.0f} s; restart the node")
    if done.returncode != 0:
        return Check("gpu", False, f"a sum on the GPU fails: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    found = int(done.stdout.split()[-1])
    if found < wanted:
        hint = "install its CUDA build and the NVIDIA driver, or start Ray with the right --num-gpus"
        return Check("gpu", False, f"torch finds {found} of the {wanted} GPUs that Ray counts here: {hint}")
    return Check("gpu", True, f"a sum works on {found}")
