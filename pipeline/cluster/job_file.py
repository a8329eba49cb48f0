"""Job files: what to run, on which cluster, for whom and when; checked by the code that runs them, all at once."""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from dladiff.errors import ConfigError
from dladiff.settings.merge import digest, merge
from dladiff.settings.schema import encoder_fault
from dladiff.settings.validate import Items, Settings, unless
from pipeline.cluster.checks import relative_paths, unfit
from pipeline.cluster.schedule import Schedule
from pipeline.cluster.settings import Cluster
from pipeline.config import RunConfig, load_run, read_yaml, without_replaced
from pipeline.retention.retain import Retention
from pipeline.storage.open import local_path

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,37}[a-z0-9])?")  # KubeRay lets a RayJob's name have 47 characters, we add to it


def _name_fault(text: str) -> str | None:
    fault = f"{text!r} must be at most 40 of a-z, 0-9 and -, a letter first; it names cluster objects"
    return None if _NAME.fullmatch(text) else fault


def _mappings(tenants: Any) -> Any:
    if not isinstance(tenants, list) or not tenants or not all(isinstance(one, dict) for one in tenants):
        raise ValueError("expected a list of tenants, each with name, input and output")
    return tenants


Name = Annotated[str, unless(_name_fault)]


RUN_DEFAULTS = {"max_failed": "100%"}
"""Settings of a job's run that differ from those of the command line: nobody waits for its exit code but the cluster,
which would build itself again for one photo that cannot be read."""


class TenantValues(Settings):
    """A tenant as a job file has it."""

    name: Name
    """Name of the tenant; its rules are the job's."""
    input: Any = None  # this and the next two are checked as settings of its run
    """Photos, as in the settings of a run."""
    output: Any = None
    """Where its result goes; no two tenants' outputs lie inside each other."""
    profile: Any = None
    """Profile of the method, where it is not the shared one."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Settings of a run that differ from the shared ones."""
    retention: Retention | None = None
    """What is deleted after its turn; left out, nothing."""


class JobValues(Settings):
    """A job as its file has it."""

    name: Name
    """Name of the job and of its cluster objects: at most 40 of a-z, 0-9 and -, a letter first."""
    run: dict[str, Any] = Field(default_factory=dict)
    """Settings of the run; with tenants, what they share."""
    cluster: Cluster = Cluster()
    """What `dladiff render` makes a cluster of."""
    schedule: Schedule | None = None
    """When a nightly job runs; with tenants only, and then needed."""
    tenants: Annotated[Items[dict[str, Any]], BeforeValidator(_mappings)] = ()
    """Users of a nightly job, a list; left out, the job is one run."""

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if self.tenants and self.schedule is None:
            yield "schedule: is missing; tenants need cron, time_zone, start and end"
        if self.schedule and not self.tenants:
            yield "schedule: needs tenants; for one run give one tenant"


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

    def runs(self) -> list[tuple[str, RunConfig]]:
        """Return each run with the name of its settings in the file."""
        return [("run", self.run)] if self.run else [(f"tenants.{t.name}", t.run) for t in self.tenants]

    def settings(self) -> dict[str, Any]:
        """Return what the cluster's driver is given: run settings, or name, schedule and tenants; no cluster."""
        if self.run is not None:
            run: dict[str, Any] = self.source["run"]
            return run
        return {key: value for key, value in self.source.items() if key != "cluster"}

    def digest(self) -> str:
        """Return the digest of what is done; the cluster takes no part."""
        return digest(json.loads(json.dumps(self.settings(), default=str)))


def load_job(file: Path, *, elsewhere: bool = False) -> Job:
    """Read and check a job file; with a group `cluster` also whether the runs fit it. Raises ConfigError: every fault.

    With `elsewhere` the job is not for this machine, and relative paths are faults too.
    """
    values = read_yaml(file, "a job (name, run, cluster)", "; give a job file, for example jobs/nightly.yaml")
    if values.get("run") is None or isinstance(values["run"], dict):
        values = dict(values) | {"run": RUN_DEFAULTS | _group(values, "run")}
    checked, faults = JobValues.load(_given(values, "run", "cluster", "schedule"))
    shared = _group(values, "run")
    run: RunConfig | None = None
    tenants: tuple[Tenant, ...] = ()
    if "tenants" not in values:
        run, wrong = load_run(shared)
        faults += [f"run.{fault}" for fault in [*wrong, *_unnamed(run)]]
    elif not any(fault.startswith("tenants:") for fault in faults):
        tenants = _tenants(values["tenants"], shared, faults)
    runs = [("run", run)] if run else [(f"tenants.{tenant.name}", tenant.run) for tenant in tenants]
    if checked and "cluster" in values:
        faults += unfit(runs, checked.cluster)
    if elsewhere:
        faults += relative_paths(runs)
    if checked is None or faults:
        raise ConfigError([f"{file.name}: {fault}" for fault in faults])
    timed = checked.schedule
    return Job(name=checked.name, run=run, tenants=tenants, cluster=checked.cluster, schedule=timed, source=values)


def _given(values: Mapping[str, Any], *groups: str) -> dict[str, Any]:
    """Return the values; a group of settings that YAML leaves empty holds none."""
    return {key: {} if value is None and key in groups else value for key, value in values.items()}


def _group(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a group of settings, empty if it is none: what is wrong with its type is a fault found elsewhere."""
    group = values.get(key)
    return group if isinstance(group, dict) else {}


def _tenants(values: list[dict[str, Any]], shared: Mapping[str, Any], faults: list[str]) -> tuple[Tenant, ...]:
    found: list[Tenant] = []
    _, known = load_run({"input": "in", "output": "out"} | dict(shared))  # once, not for each
    faults += [f"run.{fault}" for fault in known]
    for i, value in enumerate(values):
        where = f"tenants.{value.get('name') or i}."
        checked, wrong = TenantValues.load(_given(value, "overrides", "retention"), where)
        places = {key: value[key] for key in ("input", "output", "profile") if key in value}
        run, of_run = load_run(_layered(shared, _group(value, "overrides") | places))
        faults += wrong + [f"{where}{fault}" for fault in of_run if fault not in known]
        faults += [f"{where}{fault}" for fault in _unnamed(run)]
        if run:
            rule = checked.retention if checked else None
            found.append(Tenant(name=str(value.get("name")), run=run, retention=rule))
    faults += _shared_places(found)
    return tuple(found)


def _unnamed(run: RunConfig | None) -> list[str]:
    """Return what to do if a run names no encoder, at most one line."""
    fault = encoder_fault(run.method_config()) if run else None
    return [fault] if fault else []


def _layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = copy.deepcopy(without_replaced(below, above))
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
