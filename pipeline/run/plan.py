"""Plan a run: list identities, split them into tasks, subtract what the records hold; no pixel is read."""

import contextlib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dladiff.errors import ConfigError, ModelError
from dladiff.layers.pushed import vaes_not_here
from pipeline.config import RunConfig
from pipeline.process.temporary import temporary_folder
from pipeline.records.commit import Index, Recorded, Task, key_of, now, read_index
from pipeline.records.latest import LATEST as LATEST
from pipeline.records.manifest import GROUP, ParquetFile
from pipeline.records.schema import PLAN
from pipeline.run.listed import listed
from pipeline.run.prefixes import Prefixes
from pipeline.run.todo import Todo
from pipeline.sources.decode import is_lasting
from pipeline.sources.find import Identity, Photo, find_identities
from pipeline.sources.given_faces import with_faces
from pipeline.sources.index_file import index_identities, is_index
from pipeline.sources.left_out import LeftOut
from pipeline.sources.share import Shard
from pipeline.storage.base import FOLDERS, Storage
from pipeline.storage.keys import shown
from pipeline.storage.open import local_path, open_storage

log = logging.getLogger(__name__)

CANDIDATES = 4  # candidates for the clean set, in units of clean_photos: the largest files; faces choose among them
NO_PHOTOS = (
    "no photos found in {uri}; understood are: one folder an identity, photos side by side (each an identity, or "
    "--one-identity), <identity>/set_A, set_B folders, CelebA-HQ, VGGFace2, Parquet and tar files of photos, and an "
    "index file (.csv, .jsonl, .parquet); JPEG, PNG, WebP, HEIC, AVIF, BMP, TIFF"
)


@dataclass(frozen=True)
class Retry:
    """Which failures to retry: all, or those whose reason contains one of `reasons`."""

    reasons: tuple[str, ...] = ()

    def takes(self, reason: str) -> bool:
        """Return whether to retry a failure with this reason."""
        return not self.reasons or any(part.casefold() in reason.casefold() for part in self.reasons)


@dataclass
class Plan:
    """Counts of identities, photos and tasks; the tasks themselves are in two files if a folder was given."""

    index: Index
    identities: int = 0
    photos: int = 0
    todo: int = 0
    todo_photos: int = 0
    pending: dict[str, int] = field(default_factory=dict)
    """Number of tasks to do, by identity with any."""
    tasks: dict[str, set[Task]] = field(default_factory=dict)
    """All tasks of those identities."""
    kept: dict[str, str] = field(default_factory=dict)
    """failed or quarantined, by identity with an earlier failure that is not retried."""
    retried: list[Task] = field(default_factory=list)
    skipped: int = 0
    without_clean: int = 0
    """Identities without a clean set of their own: the photos to protect are it."""
    lost_photos: int = 0
    """Photos that failed in tasks that are done."""
    may_recover: bool = False
    """Whether an earlier failure that is not retried may end otherwise with the same files."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """Files of the input that are no photos, and what of it was not read."""
    plan_hash: str = ""
    inputs: tuple[str, ...] = ()
    """Folders or bucket prefixes of the photos; `verify` and `report` read originals below them."""
    buckets: Prefixes = field(default_factory=Prefixes)
    """Prefixes of an index file's photos outside of its folder."""
    plan_file: ParquetFile | None = None
    todo_file: Todo | None = None

    def note(self, config: RunConfig) -> str:
        """Return what is to be known of the clean sets and of known VAEs, "" where there is nothing."""
        method = config.method_config()
        if not os.environ.get("RAY_ADDRESS"):  # a cluster's workers may have other VAEs
            with contextlib.suppress(ModelError):  # there is none: a need of the run
                if left_out := vaes_not_here(method):
                    return left_out
        if not self.without_clean or not method.trains_surrogate or not method.finetuning.iter_ft:
            return ""
        return (
            f"{self.without_clean} of {self.identities} identities have no clean set, so the surrogate learns from the "
            "photos to protect; --layout sets (set_A) or the role clean in an index gives one"
        )

    def settled(self) -> Counter[str]:
        """Return the number of identities without new work by status: failed, quarantined, skipped."""
        counts = Counter(status for name, status in self.kept.items() if name not in self.pending)
        counts["skipped"] = self.skipped
        return counts


def make_plan(config: RunConfig, *, retry: Retry | None = None, folder: Path | None = None) -> Plan:
    """List the input and subtract what the output's records hold; nothing is written to storage.

    The plan and the actors' work are written to files in `folder`, if given. Raises ConfigError, StorageError.
    """
    target = open_existing(config.output)
    plan = Plan(read_index(target) if target else Index())
    if folder is not None:
        plan.plan_file, plan.todo_file = ParquetFile(folder, PLAN), Todo(folder)
    plan.inputs = inputs_of(config)
    roots = tuple(f"{root.rstrip('/')}/" for root in plan.inputs)
    digest, content = config.config_digest(), hashlib.sha256()
    clean_photos = config.method_config().clean_photos
    own = tuple(f"{target.uri.rstrip('/')}/{folder}/" for folder in FOLDERS) if target else ()
    shard, every = Shard(config.shard), identities(config, target, left=plan.left_out)
    for identity in islice((one for one in every if shard.holds(one.name)), config.limit):
        _check_apart(identity, own)
        _add(plan, identity, config, (digest, clean_photos), retry)
        for photo in (*identity.photos, *identity.clean):
            if not photo.uri.startswith(roots):
                plan.buckets.add(photo.uri)
            content.update(f"{photo.uri}\0{photo.tag}{photo.faces}\0".encode("utf-8", "surrogatepass"))
    if not shard.seen:
        unread = plan.left_out.unread
        more = f"; {unread} names or folders could not be read, the lines above name them" if unread else ""
        raise ConfigError([NO_PHOTOS.format(uri=config.input) + more])
    plan.plan_hash = content.hexdigest()
    plan.inputs += plan.buckets.addresses()
    for file in (plan.plan_file, plan.todo_file):
        if file is not None:
            file.close()
    return plan


def write_plan(target: Storage, plan: Plan, run_id: str) -> None:
    """Store the plan as plan/plan-<hash>.parquet, and its summary as plan/latest.json, which `status` reads."""
    assert plan.plan_file is not None
    key = f"plan/plan-{plan.plan_hash[:16]}.parquet"
    place = PLAN.get_field_index("plan_hash")  # known only after the last row
    with temporary_folder() as folder:
        file = folder / "plan.parquet"
        with pq.ParquetFile(plan.plan_file.path) as rows, pq.ParquetWriter(file, PLAN) as writer:
            for batch in rows.iter_batches(GROUP):
                hashes = pa.array([plan.plan_hash] * batch.num_rows, pa.string())
                writer.write_batch(batch.set_column(place, PLAN.field(place), hashes))
        target.put_file(key, file)
    latest = {"plan": key, "run_id": run_id, "started_at": now(), "tasks": plan.plan_file.count}
    latest |= {"unread": plan.left_out.unread}
    latest |= {"identities": plan.identities, "photos": plan.photos, "todo": plan.todo, "inputs": plan.inputs}
    target.put(LATEST, json.dumps(latest, indent=1).encode(), "application/json")


def inputs_of(config: RunConfig) -> tuple[str, ...]:
    """Return the folders or bucket prefixes of a run's photos; for an index file its folder, then allow_roots.

    An index file's photos in other buckets are in `Prefixes`. Raises StorageError for an input that does not exist.
    """
    if not is_index(config.input):
        return (open_storage(config.input).uri,)
    folder = config.input.removesuffix(config.input.rpartition("/")[2]) or "."
    return tuple(open_storage(root).uri for root in (folder, *config.allow_roots))


def open_existing(uri: str) -> Storage | None:
    """Open the output; None for a folder that does not exist yet, which a plan does not create."""
    path = local_path(uri)
    return None if path is not None and not path.exists() else open_storage(uri)


def identities(
    config: RunConfig, target: Storage | None, *, whole: bool = False, left: LeftOut | None = None
) -> Iterator[Identity]:
    """Yield the input's identities, ignoring `limit`; an output inside the input is excluded.

    `left` counts what is left out. With `whole` an unreadable folder raises StorageError, else it is logged and
    skipped.
    """
    if is_index(config.input):
        return with_faces(index_identities(config.input, config.allow_roots, left), config.input)
    source = open_storage(config.input)
    lists = open_storage(config.lists) if config.lists else None
    inside = _inside(source, target) if target else None
    layout = config.layout_name()
    return find_identities(source, layout=layout, exclude_prefix=inside, lists=lists, whole=whole, left=left)


def _inside(source: Storage, target: Storage) -> str | None:
    """Return the output's prefix below the input, or None. Raises ConfigError when both are the same."""
    outer, inner = source.uri.rstrip("/"), target.uri.rstrip("/")
    if outer == inner:
        raise ConfigError(["output: is the input itself; give another output"])
    return inner[len(outer) + 1 :] if inner.startswith(outer + "/") else None


def _check_apart(identity: Identity, own: tuple[str, ...]) -> None:
    """Raise ConfigError for photos in the output's own folders: the sweep could delete originals there."""
    for photo in (*identity.photos, *identity.clean):
        if photo.uri.startswith(own):
            raise ConfigError(
                [f"output: its folders hold photos of the input ({shown(photo.uri)}); give another output"]
            )


def _add(plan: Plan, identity: Identity, config: RunConfig, method: tuple[str, int], retry: Retry | None) -> None:
    digest, clean_photos = method
    photos, name = identity.photos, identity.name
    plan.identities += 1
    plan.without_clean += not identity.clean
    plan.photos += len(photos)
    count = -(-len(photos) // config.max_photos_per_task)
    size = -(-len(photos) // count)  # parts of equal size
    clean = _candidates(identity, clean_photos, config.max_photo_bytes, split=count > 1)
    tasks = [(name, part) for part in range(1, count + 1)] if count > 1 else [(name, 0)]
    todo = 0
    for i, task in enumerate(tasks):
        chunk = photos[i * size : (i + 1) * size]
        basis = (*chunk, *clean) if count > 1 else (*chunk, *identity.clean)
        key = key_of(name, [(p.key, p.tag + p.faces) for p in basis], digest)
        if plan.plan_file is not None:
            uris = [p.uri for p in chunk]
            plan.plan_file.add({"identity": name, "part": task[1], "key": key, "uris": uris})
        is_new, replaces = _is_new(plan, task, key, len(chunk), retry)
        if is_new:
            todo += 1
            plan.todo_photos += len(chunk)
            work = {"identity": name, "part": task[1], "parts": count, "key": key, "replaces": replaces}
            work |= {"photos": listed(chunk), "clean": listed(clean), "own_clean": not identity.clean}
            if plan.todo_file is not None:
                plan.todo_file.task(work, chunk)
    if todo:
        plan.todo += todo
        plan.pending[name] = todo
        plan.tasks[name] = set(tasks)
    elif name not in plan.kept:
        plan.skipped += 1


def _is_new(plan: Plan, task: Task, key: str, photos: int, retry: Retry | None) -> tuple[bool, str | None]:
    """Return whether to do a task, and the tag of the commit record of the same key that it replaces, or None.

    A commit record that does not account for each of the task's photos does not count.
    """
    done, failed = _of_key(plan.index.done.get(task), key), _of_key(plan.index.failed.get(task), key)
    if failed:
        if retry and retry.takes(failed.reason):
            plan.retried.append(task)
            return True, done.tag if done else None
        plan.may_recover |= not is_lasting(failed.reason)
        plan.kept[task[0]] = "quarantined" if "quarantined" in (failed.status, plan.kept.get(task[0])) else "failed"
        return False, None
    if done is None:
        return True, None
    if not done.accounts_for(photos):
        named = done.photos - done.incomplete
        log.warning("%s accounts for %d of %d photos: its task is done again", shown(done.place), named, photos)
        return True, done.tag
    if done.failed_photos and retry and any(retry.takes(reason) for reason in done.photo_reasons):
        return True, done.tag
    plan.lost_photos += done.failed_photos
    plan.may_recover |= not all(map(is_lasting, done.photo_reasons))
    return False, None


def _of_key(row: Recorded | None, key: str) -> Recorded | None:
    return row if row is not None and row.key == key else None


def _candidates(identity: Identity, clean_photos: int, most: int, *, split: bool) -> tuple[Photo, ...]:
    """Return candidates for the clean set: the largest clean photos, or photos of all parts if there are none.

    The actor chooses among them by their faces. Files of more than `most` bytes come last: actors do not read them.
    """
    among = identity.clean or (identity.photos if split or len(identity.photos) > clean_photos else ())
    largest = sorted(among, key=lambda p: (p.size > most, -p.size, p.uri))[: CANDIDATES * clean_photos]
    return tuple(sorted(largest, key=lambda p: p.uri))
