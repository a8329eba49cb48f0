"""The `dladiff` command: parse, call one function, return its exit code (0 all, 1 some failed, 2 usage, 3 storage)."""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dladiff.errors import ConfigError, DladiffError, StorageError

Command = Callable[..., int]


@click.group()
def main() -> None:
    """Protect portrait photos against diffusion-model customization."""


def _guarded(function: Command) -> Callable[..., None]:
    """Turn errors into one line each on stderr and an exit code; DLADIFF_DEBUG=1 keeps the traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = function(*args, **kwargs)
        except DladiffError as error:
            if os.environ.get("DLADIFF_DEBUG") == "1":
                raise
            lines = error.faults if isinstance(error, ConfigError) else [str(error)]
            for line in lines:
                click.echo(f"error: {' '.join(line.split())}", err=True)
            code = 3 if isinstance(error, StorageError) else 2
        sys.exit(code)

    return run


def _settings(function: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--input", help="Folder or s3://bucket/prefix of the photos."),
        click.option("--output", help="Folder or s3://bucket/prefix for the result."),
        click.option("--profile", help="tiny (embedded, the default) or sd21 (your own weights)."),
        click.option("--preset", help="Schedule: paper or strong; left out: the profile's own."),
        click.option("--config", type=click.Path(path_type=Path), help="YAML file; options win over it."),
        click.option("--limit", type=int, help="Most identities."),
        click.option("--seed", type=int, help="Seed of every random stream (0)."),
        click.option("--layout", help="auto (the default), folders, flat, one or sets."),
        click.option("--one-identity", is_flag=True, default=None, help="All photos are one person."),
        click.option("--faces", multiple=True, help="InsightFace pack folder to protect against; repeatable."),
        click.option("--retry-failed", is_flag=True, help="Take failed and quarantined identities up again."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout."),
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), function)


def _output(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(function)
    return click.option("--output", required=True, help="Folder or s3://bucket/prefix of a run.")(function)


def _plan_only(config: Path | None, retry_failed: bool, as_json: bool, options: dict[str, Any]) -> int:
    from pipeline.config import run_config
    from pipeline.run import make_plan

    plan = make_plan(run_config(config, options), retry_failed=retry_failed)
    names = [json.loads(row["work"]) for row in plan.todo]
    facts = {
        "identities": len(plan.identities),
        "photos": plan.photos(),
        "new_identities": len(names),
        "new_photos": sum(len(work["photos"]) for work in names),
        "done": len(plan.skipped),
        "failed_before": len(plan.kept),
    }
    _report(facts, as_json)
    return 0


@main.command()
@_settings
@click.option("--dry-run", is_flag=True, help="Say what would run; write nothing.")
@_guarded
def protect(config: Path | None, dry_run: bool, retry_failed: bool, as_json: bool, **options: Any) -> int:
    """Protect every identity that is new or changed."""
    if dry_run:
        return _plan_only(config, retry_failed, as_json, options)
    from rich.console import Console

    from pipeline.config import run_config
    from pipeline.progress import closing_table
    from pipeline.run import protect as run

    console = Console(stderr=as_json)
    summary = run(run_config(config, options), retry_failed=retry_failed, console=console)
    if summary.results:
        console.print(closing_table(summary.results))
    names = ("planned", "photos", "done", "failed", "quarantined", "skipped", "lost_photos")
    facts = {name: getattr(summary, name) for name in names}
    if as_json:
        click.echo(json.dumps(facts | {"results": summary.results}))
    else:
        click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
    return summary.exit_code


@main.command()
@_settings
@_guarded
def plan(config: Path | None, retry_failed: bool, as_json: bool, **options: Any) -> int:
    """Say what would run: identities and photos; writes nothing."""
    return _plan_only(config, retry_failed, as_json, options)


@main.command()
@_output
@_guarded
def status(output: str, as_json: bool) -> int:
    """Count what is done, failed, quarantined and left, with rates."""
    from pipeline.progress import status as read
    from pipeline.storage import open_storage

    _report(read(open_storage(output)), as_json)
    return 0


@main.command()
@_output
@_guarded
def failed(output: str, as_json: bool) -> int:
    """List identities that failed, and photos that failed alone, with the reason."""
    from pipeline.manifest import load_records
    from pipeline.names import shown
    from pipeline.storage import open_storage

    records = load_records(open_storage(output))
    rows = [{"identity": n, "status": r["status"], "reason": r["reason"]} for n, r in sorted(records.failed.items())]
    for name, record in sorted(records.done.items()):
        lost = [p for p in record["photos"] if p["status"] == "failed" and name not in records.failed]
        rows += [{"identity": name, "status": "photo", "reason": f"{p['source_uri']}: {p['reason']}"} for p in lost]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for row in rows:
            click.echo(shown(f"{row['identity']}: {row['status']}: {row['reason']}"))
    return 1 if rows else 0


@main.command()
@_output
@_guarded
def verify(output: str, as_json: bool) -> int:
    """Read every stored photo again: checksum, size, bound; exit code 1 on a fault."""
    from pipeline.names import shown
    from pipeline.storage import open_storage
    from pipeline.verify import verify as check

    result = check(open_storage(output))
    if as_json:
        click.echo(json.dumps({"photos": result.photos, "compared": result.compared, "faults": result.faults}))
    else:
        for fault in result.faults:
            click.echo(f"fault: {shown(fault)}")
        click.echo(f"{result.photos} photos, {result.compared} compared with their source, {len(result.faults)} faults")
    return 1 if result.faults else 0


@main.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    click.echo(installed("dladiff"))


def _report(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            click.echo(f"{name.replace('_', ' ')}: {'-' if value is None else value}")
