"""Whether a job's runs fit its cluster: sizes of actors and workers, the volume of the weights, relative paths."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.cluster.settings import Cluster
from pipeline.config import RunConfig

Runs = Sequence[tuple[str, RunConfig]]
"""Name of the settings' group, as `run` or `tenants.press`, and the settings."""
MODELS = "/models"  # where pods have the volume of `cluster.models`
PLACES = ("input", "output", "lists")


def unfit(runs: Runs, cluster: Cluster) -> list[str]:
    """Return one line for each setting of a run that no worker of the cluster satisfies."""
    found = [fault for where, run in runs for fault in (*_sizes(where, run, cluster), *_volumes(where, run, cluster))]
    return list(dict.fromkeys(found))


def relative_paths(runs: Runs) -> list[str]:
    """Return one line for each relative path: the pods and nodes of a cluster have other working folders."""
    return [
        f"{where}: {path!r} is a relative path, which the cluster cannot resolve; give s3://bucket/prefix, or a full "
        "path on a file system that every node mounts"
        for group, run in runs
        for where, path in (*_places(group, run), *_weights(group, run))
        if _is_relative(where, path)
    ]


def _sizes(where: str, run: RunConfig, cluster: Cluster) -> Iterator[str]:
    gpus, cpus = run.gpus_per_actor, run.cpus_per_actor
    if gpus > cluster.gpus:
        yield f"{where}.gpus_per_actor: {gpus:g} is more than cluster.gpus = {cluster.gpus}: no worker holds an actor"
        return
    if cpus > cluster.cpus:
        yield f"{where}.cpus_per_actor: {cpus} is more than cluster.cpus = {cluster.cpus}: no worker holds an actor"
        return
    actors = int(cluster.gpus / gpus + 1e-9) if gpus else 1  # 1e-9: thirds of a GPU are not exact
    if run.max_actors is not None:
        actors = min(actors, run.max_actors)
    if actors * cpus > cluster.cpus:
        yield (
            f"{where}.cpus_per_actor: {actors} actors share the GPUs of a worker and need {actors} x {cpus} CPUs, but "
            f"cluster.cpus is {cluster.cpus}; set cpus_per_actor to {max(1, cluster.cpus // actors)} or cluster.cpus "
            f"to {actors * cpus}"
        )


def _volumes(where: str, run: RunConfig, cluster: Cluster) -> Iterator[str]:
    if cluster.models:
        return
    for name, path in (*_places(where, run), *_weights(where, run)):
        if path == MODELS or path.startswith(f"{MODELS}/"):
            yield f"{name}: {path} is on the volume of the weights; name its claim in cluster.models"


def _places(where: str, run: RunConfig) -> Iterator[tuple[str, str]]:
    for name in PLACES:
        if value := getattr(run, name):
            yield f"{where}.{name}", value
    yield from ((f"{where}.allow_roots", root) for root in run.allow_roots)


def _weights(where: str, run: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield name and text of each setting of the method that may name files."""
    yield from ((f"{where}.faces", face) for face in run.faces)
    yield from _texts(f"{where}.method", run.method)


def _texts(where: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(f"{where}.{name}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(where, item)


def _is_relative(where: str, path: str) -> bool:
    """Return whether a text is a relative path; names of models, packs and hub ids (owner/name) are none."""
    if "://" in path or path.startswith("/"):
        return False
    if where.rsplit(".", 1)[1] in (*PLACES, "allow_roots"):
        return True
    if path.startswith(("./", "../", "~")) or path.endswith((".onnx", ".safetensors")):
        return True
    return "/" in path and not where.endswith(".model")
