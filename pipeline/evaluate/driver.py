"""`dladiff evaluate`: plan the rows, run those that are not done on Ray Data, write the tables."""

import json
import os
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from rich.console import Console

from dladiff.errors import ConfigError, StorageError
from pipeline.evaluate.actor import EvaluateIdentity
from pipeline.evaluate.config import EvaluateConfig, missing
from pipeline.evaluate.plan import Row, make_plan
from pipeline.evaluate.results import write_results
from pipeline.evaluate.thresholds import calibrations_of
from pipeline.records.lease import Lease
from pipeline.records.pages import EVALUATION, announce, mark_results
from pipeline.run.engine import max_actors, reported, started
from pipeline.run.live import safe
from pipeline.storage.open import open_storage

LINE = ("identity", "condition", "attack", "preprocessing")


@dataclass
class Evaluated:
    """Counts of an evaluation. planned == done + failed + left, where a dry run or `tables_only` leaves rows undone."""

    people: int
    left_out: int
    planned: int
    done: int = 0
    failed: int = 0
    left: int = 0

    @property
    def exit_code(self) -> int:
        """0: all rows are measured; 1: some failed."""
        return 1 if self.failed else 0


def evaluate(
    config: EvaluateConfig,
    *,
    dry_run: bool = False,
    tables_only: bool = False,
    console: Console | None = None,
    echo: Callable[[str], None] = lambda line: None,
) -> Evaluated:
    """Run the rows that are not done yet, write the tables and return the counts. Failed rows run again.

    `tables_only` runs nothing and writes the tables of the finished rows. `echo` receives notes about the input. Raises
    ConfigError or ModelError (exit code 2), StorageError (3).
    """
    if not os.environ.get("RAY_ADDRESS") and (faults := missing(config)):  # a cluster's workers may have the models
        raise ConfigError(faults)
    calibrations_of(config)  # a file that cannot be read must not be found after hours of work
    plan = make_plan(config)
    if plan.note:
        echo(f"note: {plan.note}")
    config = config.replaced(inputs=plan.inputs)  # the actors read below these
    counts = Evaluated(len(plan.identities), len(plan.left_out), len(plan.rows))
    try:
        storage = open_storage(config.results, create=not dry_run)
        stored = {entry.key for kind in ("rows/", "failed/") for entry in storage.list(kind)}
    except StorageError:
        if not dry_run:
            raise
        stored = set()
    todo = [row for row in plan.rows if f"rows/{row['key']}.json" not in stored]
    if dry_run:
        counts.done, counts.left = len(plan.rows) - len(todo), len(todo)
        return counts
    with Lease(storage) as lease:
        mark_results(storage, (open_storage(uri).uri for uri in config.runs.values()))
        for uri in config.runs.values():
            announce(open_storage(uri), EVALUATION, storage.uri, plan.identities)
        if todo and not tables_only:
            with closing(_results(config, todo)) as stream:
                _follow(stream, len(todo), lease, console or Console(stderr=True, emoji=False))
        lease.check()
        if tables_only and not stored & {
            f"{kind}/{row['key']}.json" for row in plan.rows for kind in ("rows", "failed")
        }:
            raise ConfigError([f"{config.results} holds no row of this evaluation; its tables stay unchanged"])
        records = write_results(storage, config, plan)
    statuses = [record["status"] for record in records]
    counts.failed = statuses.count("failed")
    counts.done = len(statuses) - counts.failed
    # every planned row has a record by now, so the records that `write_results` could not read are damaged
    damaged = 0 if tables_only else counts.planned - len(statuses)
    counts.failed += damaged
    counts.left = counts.planned - len(statuses) - damaged
    return counts


def _follow(stream: Iterator[Row], total: int, lease: Lease, console: Console) -> None:
    """Print one line per finished row."""
    for number, result in enumerate(stream, 1):
        lease.check()
        about = ", ".join(safe(result[name]) for name in LINE)
        reason = f" ({safe(result['reason'])})" if result["reason"] else ""
        line = f"{number}/{total} {about}: {result['status']}{reason}, {result['seconds']} s"
        console.print(line, soft_wrap=True, highlight=False)


def _results(config: EvaluateConfig, todo: list[Row]) -> Generator[Row]:
    """Run the rows on this machine or on the cluster of RAY_ADDRESS; yield each row's result when it is done."""
    with started() as ray:
        rows = [{"work": json.dumps(row)} for row in todo]
        fitting = max_actors(ray, config.cpus, config.gpus)
        actors = min(len(rows), config.actors or fitting)
        stage = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            EvaluateIdentity,
            fn_constructor_kwargs={"config": config.to_dict(), "run_id": uuid.uuid4().hex},
            compute=ray.data.ActorPoolStrategy(min_size=actors, max_size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=config.cpus,  # torch's threads of fine-tuning
            num_gpus=config.gpus,  # attacks on the tiny model need little, so a fraction lets actors share a GPU
        )
        yield from reported(ray, stage)
