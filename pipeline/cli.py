"""The `dladiff` command: parse, call one function, return its exit code (0 all, 1 some failed, 2 usage, 3 storage)."""

import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dladiff.errors import ConfigError, DladiffError, StorageError
from pipeline import operator_commands

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.plan import Retry

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
        click.option("--layout", help="auto (the default), folders, flat, one, sets, celeba_hq or vggface2."),
        click.option("--lists", help="Folder or bucket of a collection's lists, if not beside the photos."),
        click.option("--one-identity", is_flag=True, default=None, help="All photos are one person."),
        click.option("--faces", multiple=True, help="InsightFace pack folder to protect against; repeatable."),
        click.option("--retry-failed", is_flag=True, help="Take failed and quarantined identities up again."),
        click.option("--reason", multiple=True, help="With --retry-failed: only where the reason holds this text."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout."),
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), function)


def _output(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(function)
    return click.option("--output", required=True, help="Folder or s3://bucket/prefix of a run.")(function)


def _retry(retry_failed: bool, reasons: tuple[str, ...]) -> "Retry | None":
    from pipeline.plan import Retry

    if reasons and not retry_failed:
        raise ConfigError(["--reason: chooses among failures; give --retry-failed (or --retry) too"])
    return Retry(reasons) if retry_failed else None


def _plan_only(settings: "RunConfig", retry: "Retry | None", price: float | None, as_json: bool) -> int:
    from pipeline.plan import estimate, make_plan

    found = make_plan(settings, retry=retry)
    expected = estimate(settings, found, price)
    settled = found.settled()
    facts = {
        "identities": found.identities,
        "photos": found.photos,
        "new_identities": len(found.pending),
        "new_photos": found.todo_photos,
        "tasks": found.todo,
        "done": found.skipped,
        "failed_before": settled["failed"] + settled["quarantined"],
        "lost_photos": found.lost_photos,
        "seconds_per_photo": expected.seconds_per_photo,
        "rate": f"measured on {expected.measured_photos} photos" if expected.measured_photos else "assumed",
        "actor_hours": expected.actor_hours,
        "gpu_hours": expected.gpu_hours,
        "cost": expected.cost,
        "plan_hash": found.plan_hash,
    }
    _report(facts, as_json)
    return 0


@main.command()
@_settings
@click.option("--metrics", envvar="DLADIFF_METRICS", help="Serve progress to Prometheus at [HOST:]PORT.")
@click.option("--dry-run", is_flag=True, help="Say what would run; write nothing.")
@_guarded
def protect(
    config: Path | None,
    dry_run: bool,
    retry_failed: bool,
    reason: tuple[str, ...],
    metrics: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Protect every identity that is new or changed."""
    from pipeline.config import run_config

    settings, retry = run_config(config, options), _retry(retry_failed, reason)
    if dry_run:
        return _plan_only(settings, retry, None, as_json)
    from rich.console import Console

    from pipeline.driver_metrics import served
    from pipeline.progress import closing_table
    from pipeline.run import protect as run

    console = Console(stderr=as_json)
    with served(metrics) as driver:
        summary = run(settings, retry=retry, console=console, metrics=driver)
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
@click.option("--price", type=click.FloatRange(min=0), help="Of one GPU-hour (actor-hour without GPUs), any currency.")
@_guarded
def plan(
    config: Path | None,
    retry_failed: bool,
    reason: tuple[str, ...],
    price: float | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Say what would run: identities, photos, GPU-hours, cost; writes nothing."""
    from pipeline.config import run_config

    return _plan_only(run_config(config, options), _retry(retry_failed, reason), price, as_json)


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
@click.option("--retry", is_flag=True, help="Forget these failures, so that the next run takes them up.")
@click.option("--reason", multiple=True, help="Only where the reason holds this text; repeatable.")
@_guarded
def failed(output: str, retry: bool, reason: tuple[str, ...], as_json: bool) -> int:
    """List identities that failed, and photos that failed alone, with the reason."""
    from pipeline import failures
    from pipeline.names import shown
    from pipeline.plan import Retry
    from pipeline.storage import open_storage

    storage, which = open_storage(output), Retry(reason)
    if retry:
        click.echo(f"{failures.forget(storage, which)} failures forgotten; the next run takes them up")
        return 0
    rows = failures.listed(storage, which)
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for row in rows:
            click.echo(shown(f"{row['identity']}: {row['status']}: {row['reason']}"))
    return 1 if rows else 0


@main.command()
@_output
@_guarded
def finalise(output: str, as_json: bool) -> int:
    """Build both manifests again from the records."""
    from pipeline.manifest import write_manifest
    from pipeline.storage import open_storage

    photos, identities = write_manifest(open_storage(output), force=True)
    _report({"photos": photos, "identities": identities}, as_json)
    return 0


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
        click.echo(json.dumps(asdict(result)))
    else:
        for fault in result.faults:
            click.echo(f"fault: {shown(fault)}")
        for orphan in result.orphans:
            click.echo(f"orphan: {shown(orphan)}")
        counts = f"{len(result.faults)} faults, {len(result.orphans)} files that no record names"
        click.echo(f"{result.photos} photos, {result.compared} compared with their source, {counts}")
    return 1 if result.faults else 0


@main.command()
@_output
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Local file; else report/index.html there."
)
@click.option("--photos", type=click.IntRange(min=1), default=200, show_default=True, help="Most photos shown.")
@_guarded
def report(output: str, html: Path | None, photos: int, as_json: bool) -> int:
    """Write one HTML page: before, after, change, scores, distributions. It holds pictures of the originals."""
    from pipeline.report import write_report
    from pipeline.storage import open_storage

    _report(asdict(write_report(open_storage(output), html, photos)), as_json)
    return 0


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


def _add(function: Command) -> None:
    params: list[click.Parameter] = list(reversed(getattr(function, "__click_params__", [])))
    main.add_command(
        click.Command(function.__name__, params=params, callback=_guarded(function), help=function.__doc__)
    )


for _command in operator_commands.COMMANDS:
    _add(_command)
