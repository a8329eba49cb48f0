"""Run tasks with Ray Data: one row a task, a pool of actors, results as they arrive."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from dladiff.errors import ConfigError, DladiffError, ModelError, StorageError
from pipeline.config import RunConfig
from pipeline.run.actor import FATAL, OUT_OF_REACH, ProtectIdentity
from pipeline.run.estimate import assumed_rate
from pipeline.run.fitness import Board, Fault, Watch
from pipeline.run.reporting import UNFIT, ReportingActor
from pipeline.run.session import NO_TOKEN, started
from pipeline.run.todo import Todo
from pipeline.storage.base import Storage

TODO_FILES = "plan/todo-"  # files of one run, deleted at its end
NO_PROGRESS_S = 1800.0  # least seconds without a result after which a run fails
DRAIN_S = 60.0  # seconds in which all tasks are returned where no worker can work
SHOWN = 5  # faulty workers that a message names
IN_MEMORY = 50_000  # photos, some 10 MB; above it the actors read their work from storage: the driver has row numbers


def results(
    config: RunConfig,
    todo: Todo,
    target: Storage,
    run_id: str,
    deadline: float | None = None,
    bad: Callable[[list[Fault]], None] = lambda faults: None,
) -> Generator[dict[str, Any]]:
    """Run the actors on this machine or the cluster of RAY_ADDRESS; yield each task's result as it arrives.

    No task is started after `deadline` (seconds since the epoch); the rest gets status `late`. On a cluster a node
    whose worker cannot work is taken out: `bad` is given all such faults whenever there is a new one.
    Raises StorageError when Ray does not start or fails, ConfigError when this machine is too small for an actor,
    ModelError or StorageError when no worker can work.
    """
    arguments = {"run": config.to_dict(), "run_id": run_id, "digest": config.config_digest(), "deadline": deadline}
    with started() as ray:
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = no_progress_s(config)
        rows = _rows(ray, todo, target, run_id)
        if not os.environ.get("RAY_ADDRESS"):
            fitting = max_actors(ray, config.cpus_per_actor, config.gpus_per_actor)
            most = min(todo.count, config.max_actors or fitting)
            # a private Ray needs no gradual start
            yield from reported(ray, _stage(rows, config, arguments, (most, most)))
        else:
            yield from _on_cluster(ray, rows, config, arguments, todo.count, bad)


def _on_cluster(
    ray: Any,
    rows: Any,
    config: RunConfig,
    arguments: dict[str, Any],
    count: int,
    bad: Callable[[list[Fault]], None],
) -> Generator[dict[str, Any]]:
    """Run tasks on a cluster; those of nodes that cannot work again on others."""
    wanted = f"{config.cpus_per_actor} CPUs" + (f" and {config.gpus_per_actor:g} GPUs" if config.gpus_per_actor else "")
    out: dict[str, Fault] = {}
    while count:
        board = ray.remote(num_cpus=0)(Board).remote()
        most = min(count, config.max_actors or count)  # Ray asks for no more than the cluster can have
        reported_to = {"board": board, "dladiff": version("dladiff")}
        stage = _stage(rows, config, arguments | reported_to, (min(config.min_actors, most), most), list(out))
        returned: list[str] = []
        until = float("inf")
        with Watch(ray, board, wanted, bad, tuple(out.values())) as watch:
            for result in reported(ray, stage):
                if result["status"] != UNFIT:
                    yield result
                    continue
                returned.append(result["work"])
                until = min(until, time.monotonic() + DRAIN_S)
                if time.monotonic() > until and not watch.look().worked:
                    break
            out |= {fault.node: fault for fault in watch.look().faults}
            if returned and not (
                watch.state.worked and _others(ray, config, out)
            ):  # at the end of the stage, so that Ray ends in order
                raise _none_fit(list(out.values()))
        count = len(returned)
        rows = ray.data.from_items([{"work": work} for work in returned], override_num_blocks=count) if count else None


def _others(ray: Any, config: RunConfig, out: Mapping[str, Fault]) -> bool:
    """Return whether a node that was not taken out has what an actor asks for."""
    asked = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
    return any(
        node["Alive"] and all(node["Resources"].get(kind, 0) >= count for kind, count in asked.items())
        for node in ray.nodes()
        if node["NodeID"] not in out
    )


def _none_fit(faults: list[Fault]) -> DladiffError:
    lines = sorted({fault.line() for fault in faults})
    text = f"no worker of the cluster can work. {'; '.join(lines[:SHOWN])}"
    text += f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return ModelError(text) if any(fault.lasting for fault in faults) else StorageError(text)


def _stage(
    rows: Any, config: RunConfig, arguments: dict[str, Any], size: tuple[int, int], without: Sequence[str] = ()
) -> Any:
    """Return the stage of the actors. `size`: smallest and largest pool; `without`: ids of nodes not to use."""
    import ray

    least, most = size
    actors = ray.data.ActorPoolStrategy(
        min_size=least,
        max_size=most,
        max_tasks_in_flight_per_actor=2,  # with one, actors idle between tasks and the pool never grows
    )
    elsewhere = {"label_selector": {"ray.io/node-id": f"!in({','.join(without)})"}} if without else {}
    return rows.map(
        ReportingActor if "board" in arguments else ProtectIdentity,
        fn_constructor_kwargs=arguments,
        compute=actors,
        num_cpus=config.cpus_per_actor,  # torch's threads on the CPU
        num_gpus=config.gpus_per_actor,  # a fraction: actors share a GPU
        **elsewhere,
        # Ray Data restarts killed actors without limit; the stored start notes end a crash loop
    )


def no_progress_s(config: RunConfig) -> float:
    """Return the seconds without any result after which a run fails: two full tasks at the slowest rate assumed."""
    return max(NO_PROGRESS_S, 2 * config.max_photos_per_task * assumed_rate(config).high)


def reported(ray: Any, stage: Any) -> Generator[dict[str, Any]]:
    """Yield the column `result` of a stage, row by row as the rows arrive.

    Raises ModelError for status `fatal`, StorageError for status `storage` and when Ray fails.
    """
    try:
        # iter_rows fetches one block ahead, which would delay each result until the next one
        for block in stage.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for result in map(json.loads, block["result"].to_pylist()):
                if kind := {FATAL: ModelError, OUT_OF_REACH: StorageError}.get(result["status"]):
                    raise kind(result["reason"])
                yield result
    except DladiffError:
        raise
    except ray.data.exceptions.ExecutionTimeoutError as error:
        limit = ray.data.DataContext.get_current().execution_no_progress_timeout_s
        raise StorageError(
            f"no task ended for {limit / 3600:.1f} hours: look at the workers (ray status, their logs); finished work "
            "is kept, run again"
        ) from error
    except ray.exceptions.AuthenticationError as error:
        raise StorageError(f"the Ray cluster refuses this client: {NO_TOKEN}") from error
    except ray.exceptions.RayError as error:
        raise StorageError(f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}") from error


def _rows(ray: Any, todo: Todo, target: Storage, run_id: str) -> Any:
    """Return a dataset with one block a task, longest first: results stream, and no actor reserves a second task.

    The driver makes the rows. Ray tasks (read_parquet, repartition) would deadlock: actors hold every CPU and wait for
    them.
    """
    order = todo.order()
    if todo.photos <= IN_MEMORY:
        works = list(todo.rows())
        rows = [works[i] for i in order]
    else:
        key = f"{TODO_FILES}{run_id}.parquet"
        todo.put(target, key)
        with todo.path.open("rb") as file:  # other writers of the output must not change the actors' work
            plan = {
                "plan": key,
                "size": todo.path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
        rows = [{"work": json.dumps(plan | {"row": i})} for i in order]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def max_actors(ray: Any, cpus: int, gpus: float) -> int:
    """Return how many actors with `cpus` and `gpus` each fit on this machine or the cluster, at least one.

    Raises ConfigError when none fits on this machine. A cluster may still grow.
    """
    have = ray.cluster_resources()
    if not os.environ.get("RAY_ADDRESS"):
        wanted_by = {"cpus_per_actor": (cpus, "CPU"), "gpus_per_actor": (gpus, "GPU")}
        faults = [
            f"{name}: {wanted:g} is more than this machine has ({have.get(kind, 0):g}); lower it, or name a "
            "cluster in RAY_ADDRESS"
            for name, (wanted, kind) in wanted_by.items()
            if wanted > have.get(kind, 0)
        ]
        if faults:
            raise ConfigError(faults)
    most = int(have.get("CPU", 1) // cpus)
    return max(1, min(most, int(have.get("GPU", 0) // gpus)) if gpus else most)
