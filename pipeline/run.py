"""The chain: find identities, subtract what is done, hand the rest to Ray Data one by one, build the manifest."""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from dladiff.errors import ConfigError, DladiffError, ModelError, StorageError
from pipeline import manifest
from pipeline.actor import ProtectIdentity
from pipeline.config import RunConfig
from pipeline.progress import Progress
from pipeline.sources import Identity, find_identities
from pipeline.storage import Storage, open_storage

PLAN = pa.schema([("identity", pa.string()), ("uris", pa.list_(pa.string())), ("plan_hash", pa.string())])
NO_PHOTOS = (
    "no photos found in {uri}; understood are: one folder an identity, photos side by side (each an identity, or "
    "--one-identity), and <identity>/set_A, set_B folders; JPEG, PNG, WebP, BMP, TIFF"
)


@dataclass(frozen=True)
class Plan:
    """What there is to do: `todo` rows for the actor; `skipped` are done, `kept` failed or quarantined before."""

    identities: list[Identity]
    todo: list[dict[str, str]]
    skipped: list[str]
    kept: dict[str, str]
    lost_photos: int

    def photos(self) -> int:
        """Return the number of photos planned."""
        return sum(len(i.photos) for i in self.identities)


@dataclass
class Summary:
    """planned == done + failed + quarantined + skipped; lost_photos lie in done or skipped identities."""

    planned: int
    photos: int
    todo: int
    done: int = 0
    failed: int = 0
    quarantined: int = 0
    skipped: int = 0
    lost_photos: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all protected, 1 some failed."""
        return 1 if self.failed or self.quarantined or self.lost_photos else 0


def make_plan(config: RunConfig, *, retry_failed: bool = False) -> Plan:
    """List the input and subtract what the output's records hold; writes nothing. Raises ConfigError, StorageError."""
    source, target = open_storage(config.input), _existing(config.output)
    inside = _inside(source, target) if target else None
    found = find_identities(source, layout=config.layout_name(), exclude_prefix=inside)[: config.limit]
    if not found:
        raise ConfigError([NO_PHOTOS.format(uri=source.uri)])
    records = manifest.load_records(target) if target else manifest.Records()
    digest = config.config_digest()
    plan = Plan(found, [], [], {}, 0)
    lost = 0
    for identity in found:
        key = manifest.key_of(identity.name, [(p.key, p.tag) for p in (*identity.photos, *identity.clean)], digest)
        done, failed = records.done.get(identity.name), records.failed.get(identity.name)
        replaces = None
        if failed and failed["key"] == key and not retry_failed:
            plan.kept[identity.name] = failed["status"]
            continue
        if done and done["key"] == key and not (failed and failed["key"] == key):
            missing = done["identity_row"]["failed_photos"]
            if not (missing and retry_failed):
                plan.skipped.append(identity.name)
                lost += missing
                continue
            replaces = records.tags[identity.name]
        plan.todo.append({"work": json.dumps(_work(identity, key, replaces))})
    return Plan(plan.identities, plan.todo, plan.skipped, plan.kept, lost)


def protect(
    config: RunConfig, *, dry_run: bool = False, retry_failed: bool = False, console: Console | None = None
) -> Summary:
    """Protect every identity that is new. Nothing new: Ray is not started.

    Raises ConfigError or ModelError (exit code 2), StorageError (3).
    """
    plan = make_plan(config, retry_failed=retry_failed)
    if dry_run:
        return _summary(plan)
    target = open_storage(config.output, create=True)
    with manifest.Lease(target):
        plan = make_plan(config, retry_failed=retry_failed)  # what another run did until the lease was ours
        summary = _summary(plan)
        _write_plan(target, plan)
        if plan.todo:
            if retry_failed:
                for row in plan.todo:
                    manifest.clear_starts(target, json.loads(row["work"])["identity"])
            _work_off(config, plan, summary, console or Console(stderr=True))
        manifest.write_manifest(target)
    return summary


def _work_off(config: RunConfig, plan: Plan, summary: Summary, console: Console) -> None:
    with Progress(console, len(plan.todo)) as progress:
        for result in _results(config, plan.todo):
            if result["status"] == "fatal":
                raise ModelError(result["reason"])
            if result["status"] == "storage":
                raise StorageError(result["reason"])
            summary.results.append(result)
            progress.advance(result)
    counts = Counter(result["status"] for result in summary.results)
    summary.done += counts["done"]
    summary.failed += counts["failed"]
    summary.quarantined += counts["quarantined"]
    summary.lost_photos += sum(r["failed_photos"] for r in summary.results if r["status"] == "done")


def _results(config: RunConfig, rows: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Run the actors on Ray Data, on this machine or the cluster of RAY_ADDRESS; yield results as they come."""
    private = not os.environ.get("RAY_ADDRESS")
    with _ray() as ray:
        most = min(len(rows), config.max_actors or _room(ray, config))
        actors = ray.data.ActorPoolStrategy(
            min_size=most if private else min(config.min_actors, most),  # this machine is ours: no slow start
            max_size=most,
            max_tasks_in_flight_per_actor=2,  # one leaves the actor idle between identities and never scales up
        )
        stage = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            ProtectIdentity,
            fn_constructor_kwargs={"run": config.to_dict(), "run_id": uuid.uuid4().hex},
            compute=actors,
            num_cpus=config.cpus_per_actor,  # torch's threads on the CPU
            num_gpus=config.gpus_per_actor,  # a fraction shares one GPU
            # Ray Data restarts a killed actor without end; the durable start counter ends a crash loop
        )
        try:
            for row in stage.iter_rows():
                yield json.loads(row["result"])
        except DladiffError:
            raise
        except ray.exceptions.RayError as error:
            raise StorageError(f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}") from error


@contextlib.contextmanager
def _ray() -> Iterator[Any]:
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side writes to the terminal otherwise
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private instance; set before Ray reads it
    import ray
    import ray.data

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    if not address:
        options |= {"include_dashboard": False, "object_store_memory": 200_000_000}  # rows are small
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StorageError(f"Ray does not start: {str(error).strip().splitlines()[0]}") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = 0
        context.execution_options.preserve_order = False
        context.execution_no_progress_timeout_s = 6 * 3600  # well above the slowest identity
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        yield ray
    finally:
        ray.shutdown()


def _room(ray: Any, config: RunConfig) -> int:
    """How many actors the cluster holds."""
    have = ray.cluster_resources()
    room = int(have.get("CPU", 1) // config.cpus_per_actor)
    if config.gpus_per_actor:
        room = min(room, int(have.get("GPU", 0) // config.gpus_per_actor))
    return max(1, room)


def _work(identity: Identity, key: str, replaces: str | None) -> dict[str, Any]:
    photos, clean = ([{"key": p.key, "uri": p.uri} for p in part] for part in (identity.photos, identity.clean))
    return {"identity": identity.name, "key": key, "replaces": replaces, "photos": photos, "clean": clean}


def _summary(plan: Plan) -> Summary:
    kept = Counter(plan.kept.values())
    return Summary(
        planned=len(plan.identities),
        photos=plan.photos(),
        todo=len(plan.todo),
        failed=kept["failed"],
        quarantined=kept["quarantined"],
        skipped=len(plan.skipped),
        lost_photos=plan.lost_photos,
    )


def _existing(uri: str) -> Storage | None:
    """The output, or None for a folder that is not there yet: a plan does not make it."""
    if "://" not in uri and not Path(uri).exists():
        return None
    return open_storage(uri)


def _inside(source: Storage, target: Storage) -> str | None:
    """The output's prefix below the input, or None. The same place twice would protect protected photos."""
    outer, inner = source.uri.rstrip("/"), target.uri.rstrip("/")
    if outer == inner:
        raise ConfigError(["output: is the input itself; give a place of its own"])
    return inner[len(outer) + 1 :] if inner.startswith(outer + "/") else None


def _write_plan(target: Storage, plan: Plan) -> None:
    rows = [{"identity": i.name, "uris": [p.uri for p in i.photos]} for i in plan.identities]
    content = [[p.key, p.tag] for i in plan.identities for p in i.photos]
    plan_hash = hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()
    key = f"plan/plan-{plan_hash[:16]}.parquet"
    manifest.put_parquet(target, key, [row | {"plan_hash": plan_hash} for row in rows], PLAN)
    latest = {"plan": key, "identities": [i.name for i in plan.identities], "started_at": manifest.now()}
    target.put("plan/latest.json", json.dumps(latest).encode(), "application/json")
