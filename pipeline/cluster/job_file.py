"""Job files: what to run, on which cluster, for whom and when; checked by the code that runs them, all at once."""

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dladiff.errors import ConfigError
from dladiff.settings.merge import digest, merge, nearest
from pipeline.cluster.schedule import Schedule, schedule
from pipeline.config import RunConfig, read_yaml, run_config
from pipeline.retention.retain import Retention
from pipeline.storage.open import local_path

NAME = re.compile(r"[a-z]([a-z0-9-]{0,37}[a-z0-9])?")  # KubeRay lets a RayJob's name have 47 characters, we add to it
CLOUDS = ("karpenter", "eks", "gke")
KEYS = {
    "name": "Name of the job and of its cluster objects: at most 40 of a-z, 0-9 and -, a letter first.",
    "run": "Settings of the run; with tenants, what they share.",
    "cluster": "What `dladiff render` makes a cluster of.",
    "schedule": "When a nightly job runs; with tenants only, and then needed.",
    "tenants": "Users of a nightly job, a list; left out, the job is one run.",
}
"""What a job file may hold."""
TENANT_KEYS = {
    "name": "Name of the tenant; its rules are the job's.",
    "input": "Photos, as in the settings of a run.",
    "output": "Where its result goes; no two tenants' outputs lie inside each other.",
    "profile": "Profile of the method, where it is not the shared one.",
    "overrides": "Settings of a run that differ from the shared ones.",
    "retention": "What is deleted after its turn; left out, nothing.",
}
"""What a tenant in a job file may hold."""
_GATEWAY = re.compile(r"https?://[\w.-]+:(\d{1,5})/?")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many GPU workers."""

    min: int = 0
    """Fewest."""
    max: int = 4
    """Most."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What `dladiff render` makes a cluster of."""

    image: str = "registry.example/dladiff:0.1.0"
    """Container image of head and workers, made by cluster/Dockerfile."""
    cloud: str = "karpenter"
    """Whose node labels name spot capacity and GPUs: karpenter, eks, gke."""
    gpu: str = "l4"
    """GPU type as that cloud's node label has it; for eks the instance type."""
    gpus: int = 1
    """GPUs of one worker."""
    workers: Workers = field(default_factory=Workers)
    """Fewest and most workers."""
    cpus: int = 6
    """CPUs of one worker."""
    memory_gib: int = 24
    """Memory of one worker."""
    head_cpus: int = 2
    """CPUs of the head, which runs the driver and no actor."""
    head_memory_gib: int = 8
    """Memory of the head."""
    spot: bool = True
    """Workers on spot capacity: what is interrupted is done again."""
    namespace: str = "dladiff"
    """Kubernetes namespace."""
    secret: str = "dladiff-storage"
    """Secret with the storage's credentials as environment variables; may be absent where a role gives them."""
    models: str = ""
    """Volume claim with the weights, mounted read-only at /models; empty: none."""
    queue: str = ""
    """Kueue queue; empty: none. With one all `workers.max` workers start together, without autoscaling."""
    retries: int = 3
    """New clusters after a failure; each goes on where the records end."""
    pushgateway: str = ""
    """http://host:port that is told the ends of scheduled runs, inside the cluster; empty: nobody is."""
    price: float = 0.0
    """Of one GPU-hour, any currency, for the cost that a run tells; 0: it tells none."""


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One of several users of a nightly run; the lease of its output is its lock."""

    name: str
    run: RunConfig
    retention: Retention | None = None
    """What is deleted after its turn; None: nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked job file: either one run, or tenants."""

    name: str
    run: RunConfig | None
    tenants: tuple[Tenant, ...]
    cluster: Cluster
    schedule: Schedule | None
    source: Mapping[str, Any]
    """The file's own values."""

    @property
    def is_nightly(self) -> bool:
        """Whether the job has tenants."""
        return bool(self.tenants)

    def settings(self) -> dict[str, Any]:
        """Return what the cluster's driver is given: run settings, or name, schedule and tenants; no cluster."""
        if self.run is not None:
            run: dict[str, Any] = self.source["run"]
            return run
        return {key: value for key, value in self.source.items() if key != "cluster"}

    def digest(self) -> str:
        """Return the digest of what is done; the cluster takes no part."""
        return digest(json.loads(json.dumps(self.settings(), default=str)))


def load_job(file: Path) -> Job:
    """Read and check a job file. Raises ConfigError with every fault."""
    values = read_yaml(file, "a job (name, run, cluster)", "; give a job file, for example jobs/nightly.yaml")
    faults = [f"{key}: unknown setting{nearest(str(key), list(KEYS))}" for key in values if key not in KEYS]
    name = str(values.get("name") or "")
    if not NAME.fullmatch(name):
        faults.append(f"name: {name!r} must be at most 40 of a-z, 0-9 and -, a letter first; it names cluster objects")
    shared = _mapping(values, "run", faults)
    cluster = _cluster(_mapping(values, "cluster", faults), faults)
    timed = schedule(_mapping(values, "schedule", faults), faults) if "schedule" in values else None
    run: RunConfig | None = None
    tenants: tuple[Tenant, ...] = ()
    if "tenants" in values:
        tenants = _tenants(values["tenants"], shared, faults)
        if timed is None:
            faults.append("schedule: is missing; tenants need cron, time_zone, start and end")
    else:
        if timed is not None:
            faults.append("schedule: needs tenants; for one run give one tenant")
        run = _run(shared, "run", faults)
    if faults:
        raise ConfigError([f"{file.name}: {fault}" for fault in faults])
    return Job(name=name, run=run, tenants=tenants, cluster=cluster, schedule=timed, source=values)


def _run(values: Mapping[str, Any], where: str, faults: list[str], told: tuple[str, ...] = ()) -> RunConfig | None:
    try:
        return run_config(None, values)
    except ConfigError as error:
        new = [fault for fault in error.faults if fault not in told]
        faults += [f"{where}.{fault.partition('; give --')[0]}" for fault in new]
        return None


def _tenants(values: Any, shared: Mapping[str, Any], faults: list[str]) -> tuple[Tenant, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(v, dict) for v in values):
        faults.append("tenants: expected a list of tenants, each with name, input and output")
        return ()
    found: list[Tenant] = []
    told = _shared_faults(shared)
    faults += [f"run.{fault}" for fault in told]
    for i, value in enumerate(values):
        name = str(value.get("name") or "")
        where = f"tenants.{name or i}"
        faults += [
            f"{where}.{key}: unknown setting{nearest(str(key), list(TENANT_KEYS))}"
            for key in value
            if key not in TENANT_KEYS
        ]
        if not NAME.fullmatch(name):
            faults.append(f"{where}.name: {name!r} must be at most 40 of a-z, 0-9 and -, a letter first")
        overrides = _mapping(value, "overrides", faults, where)
        places = {key: value[key] for key in ("input", "output", "profile") if key in value}
        run = _run(_layered(shared, overrides | places), where, faults, told)
        if run is not None:
            found.append(Tenant(name=name, run=run, retention=_retention(value, where, faults)))
    faults += _shared_places(found)
    return tuple(found)


def _retention(tenant: Mapping[str, Any], where: str, faults: list[str]) -> Retention | None:
    if "retention" not in tenant:
        return None
    place, told = f"{where}.retention", len(faults)
    rule = Retention(**_fields(Retention, _mapping(tenant, "retention", faults, where), place, faults))
    if len(faults) == told:
        faults += [f"{place}.{fault}" for fault in rule.faults()]
    return rule


def _shared_faults(shared: Mapping[str, Any]) -> tuple[str, ...]:
    """Faults of what all tenants share: told once, not for each."""
    try:
        run_config(None, {"input": "in", "output": "out"} | dict(shared))
    except ConfigError as error:
        return tuple(error.faults)
    return ()


def _layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = copy.deepcopy(dict(below))
    merge(out, above)
    return out


def _shared_places(tenants: list[Tenant]) -> list[str]:
    """Two tenants of one name share metrics, of one output a lock and records; one inside another mixes photos."""
    faults = []
    for i, one in enumerate(tenants):
        for other in tenants[:i]:
            if one.name == other.name:
                faults.append(f"tenants.{one.name}: is there twice; names tell tenants apart")
            a, b = (_place(t.run.output) + "/" for t in (one, other))
            if a.startswith(b) or b.startswith(a):
                faults.append(f"tenants.{one.name}.output: overlaps the output of {other.name}; give each its own")
    return faults


def _place(uri: str) -> str:
    """One spelling of an output: a folder's full path, or an address without its last slash."""
    path = local_path(uri)
    return str(path.resolve()).rstrip("/") if path is not None else uri.rstrip("/")


def _cluster(values: Mapping[str, Any], faults: list[str]) -> Cluster:
    workers = _fields(Workers, _mapping(values, "workers", faults, "cluster"), "cluster.workers", faults)
    good = _fields(Cluster, {k: v for k, v in values.items() if k != "workers"}, "cluster", faults)
    cluster = Cluster(**good, workers=Workers(**workers))
    if cluster.cloud not in CLOUDS:
        hint = nearest(cluster.cloud, list(CLOUDS))
        faults.append(f"cluster.cloud: {cluster.cloud!r} is unknown{hint}; choose one of {', '.join(CLOUDS)}")
    for name in ("gpus", "cpus", "memory_gib", "head_cpus", "head_memory_gib"):
        if getattr(cluster, name) < 1:
            faults.append(f"cluster.{name}: {getattr(cluster, name)} is less than 1")
    if cluster.workers.min < 0 or cluster.workers.max < max(1, cluster.workers.min):
        faults.append("cluster.workers: expected 0 <= min <= max and at least one worker")
    gateway = _GATEWAY.fullmatch(cluster.pushgateway)
    if cluster.pushgateway and not (gateway and int(gateway[1]) < 2**16):
        faults.append(f"cluster.pushgateway: {cluster.pushgateway!r} is no http://host:port")
    for name in ("retries", "price"):
        if not 0 <= getattr(cluster, name) < math.inf:
            faults.append(f"cluster.{name}: {getattr(cluster, name)} is no number of 0 or more")
    if not cluster.namespace:
        faults.append("cluster.namespace: is empty")
    return cluster


def _fields(kind: type, values: Mapping[str, Any], where: str, faults: list[str]) -> dict[str, Any]:
    known = {f.name: f.type for f in fields(kind)}
    good = {}
    for key, value in values.items():
        expected = known.get(key)
        if expected is None:
            faults.append(f"{where}.{key}: unknown setting{nearest(str(key), list(known))}")
        elif type(value) is not expected and not (expected is float and type(value) is int):  # a bool is no number here
            faults.append(f"{where}.{key}: expected {getattr(expected, '__name__', expected)}, not {value!r}")
        else:
            good[key] = value
    return good


def _mapping(values: Mapping[str, Any], key: str, faults: list[str], where: str = "") -> dict[str, Any]:
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        faults.append(f"{where}.{key}: expected settings (name: value)".removeprefix("."))
        return {}
    return value
