"""`dladiff evaluate`: plan, subtract what is done, hand the rest to Ray Data row by row, print the tables."""

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
from pipeline.records.lease import Lease
from pipeline.records.pages import EVALUATION, announce, mark_results
from pipeline.run.engine import max_actors, reported, started
from pipeline.run.live import safe
from pipeline.storage.open import open_storage

LINE = ("identity", "condition", "attack", "preprocessing")


@dataclass
class Evaluated:
    """planned == done + failed + left; `left` is what a dry run or `tables_only` does not do."""

    people: int
    left_out: int
    planned: int
    done: int = 0
    failed: int = 0
    left: int = 0

    @property
    def exit_code(self) -> int:
        """0 all measured, 1 some failed."""
        return 1 if self.failed else 0


def evaluate(
    config: EvaluateConfig,
    *,
    dry_run: bool = False,
    tables_only: bool = False,
    console: Console | None = None,
    said: Callable[[str], None] = lambda note: None,
) -> Evaluated:
    """Attack what is new and write the tables; a second run does only what is not there, failures among it.

    `tables_only` writes them from what is there. `said` gets what is to be known of the input. Raises ConfigError or
    ModelError (exit code 2), StorageError (3).
    """
    if not os.environ.get("RAY_ADDRESS") and (faults := missing(config)):  # a cluster's workers may have it
        raise ConfigError(faults)
    plan = make_plan(config)
    if plan.note:
        said(f"note: {plan.note}")
    config = config.replaced(inputs=plan.inputs)  # the actors read below these
    found = Evaluated(len(plan.identities), len(plan.left_out), len(plan.rows))
    try:
        storage = open_storage(config.results, create=not dry_run)
        there = {entry.key for kind in ("rows/", "failed/") for entry in storage.list(kind)}
    except StorageError:
        if not dry_run:
            raise
        there = set()
    todo = [row for row in plan.rows if f"rows/{row['key']}.json" not in there]
    if dry_run:
        found.done, found.left = len(plan.rows) - len(todo), len(todo)
        return found
    with Lease(storage) as lease:
        mark_results(storage, (open_storage(uri).uri for uri in config.runs.values()))
        for uri in config.runs.values():
            announce(open_storage(uri), EVALUATION, storage.uri, plan.identities)
        if todo and not tables_only:
            with closing(_results(config, todo)) as stream:
                _follow(stream, len(todo), lease, console or Console(stderr=True, emoji=False))
        lease.check()
        if tables_only and not there & {
            f"{kind}/{row['key']}.json" for row in plan.rows for kind in ("rows", "failed")
        }:
            raise ConfigError([f"{config.results} holds no row of this question; its tables stay as they are"])
        records = write_results(storage, config, plan)
    statuses = [record["status"] for record in records]
    found.failed = statuses.count("failed")
    found.done = len(statuses) - found.failed
    damaged = 0 if tables_only else found.planned - len(statuses)  # each was measured, or failed, before or just now
    found.failed += damaged
    found.left = found.planned - len(statuses) - damaged
    return found


def _follow(stream: Iterator[Row], total: int, lease: Lease, console: Console) -> None:
    """Say how each row ended."""
    for number, result in enumerate(stream, 1):
        lease.check()
        what = ", ".join(safe(result[name]) for name in LINE)
        reason = f" ({safe(result['reason'])})" if result["reason"] else ""
        line = f"{number}/{total} {what}: {result['status']}{reason}, {result['seconds']} s"
        console.print(line, soft_wrap=True, highlight=False)


def _results(config: EvaluateConfig, todo: list[Row]) -> Generator[Row]:
    """Run the actors on this machine or the cluster of RAY_ADDRESS; yield each row's result as it comes."""
    with started() as ray:
        rows = [{"work": json.dumps(row)} for row in todo]
        held = max_actors(ray, config.cpus, config.gpus)
        most = min(len(rows), config.actors or held)
        stage = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            EvaluateIdentity,
            fn_constructor_kwargs={"config": config.to_dict(), "run_id": uuid.uuid4().hex},
            compute=ray.data.ActorPoolStrategy(min_size=most, max_size=most, max_tasks_in_flight_per_actor=2),
            num_cpus=config.cpus,  # torch's threads of fine-tuning
            num_gpus=config.gpus,  # a fraction shares one GPU: the attacks on the tiny model need little
        )
        yield from reported(ray, stage)
