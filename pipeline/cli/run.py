"""Commands `protect` and `plan`: parse, call one function, return its code."""

import functools
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dladiff.core.formats import FORMATS
from dladiff.errors import ConfigError
from dladiff.settings.adapters import ADAPTERS
from dladiff.settings.presets import STRENGTHS
from pipeline.cli.options import AS_JSON, METRICS, PRICE, Command, print_facts
from pipeline.sources.layouts import LAYOUTS
from pipeline.storage.keys import shown

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.run.plan import Retry

STRENGTH_HELP = (
    "How visible the protection may be. faint: hardly seen side by side, weakest. balanced: seen when compared. "
    "strong: seen without a comparison, protects most. What each protects: docs/evaluation.md (Strength)."
)


def _names(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in options that may each hold several, separated by commas, each name once."""
    return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))


def _settings(function: Command) -> Command:
    options = [
        click.option("--input", help="Folder or s3://bucket/prefix of the photos."),
        click.option("--output", help="Folder or s3://bucket/prefix for the result."),
        click.option(
            "--profile", help="tiny (embedded, the default), latent (VAEs only), sd21, sd21-768, sd15 or sdxl."
        ),
        click.option("--strength", type=click.Choice(list(STRENGTHS)), help=STRENGTH_HELP),
        click.option("--preset", help="paper, without_dsur, without_adft or without_layer2; default: none."),
        click.option("--method", "protection", help="A compared method: fsmg, aspl, mist ...; default: dladiff."),
        click.option("--config", type=click.Path(path_type=Path), help="YAML file; options override it."),
        click.option("--limit", type=int, help="Protect at most so many identities."),
        click.option("--shard", help="Protect only this part of the identities, as 3/8, into an output of its own."),
        click.option("--max-failed", help="Photos that may fail with exit code 0: a number, or a share (1%)."),
        click.option("--seed", type=int, help="Seed of every random stream (0)."),
        click.option("--layout", help=f"{', '.join(LAYOUTS)}; left out: auto."),
        click.option("--lists", help="Folder or bucket of a collection's lists, if they are not beside the photos."),
        click.option(
            "--allow-root",
            "allow_roots",
            multiple=True,
            help="Folder whose photos an index may name; repeatable.",
        ),
        click.option("--one-identity", is_flag=True, default=None, help="All photos are one person."),
        click.option("--faces", multiple=True, help="InsightFace pack, by name or folder; repeatable."),
        click.option(
            "--against",
            multiple=True,
            callback=_names,
            help=f"Identity adapters whose encoders to protect against, separated by commas: {', '.join(ADAPTERS)}.",
        ),
        click.option("--encoders-from", help="Folder or s3://bucket/prefix of the adapters' weights (see --against)."),
        click.option("--format", type=click.Choice(list(FORMATS)), help="Format of the protected photos (png)."),
        click.option("--opt-out", is_flag=True, default=None, help='Write "Data Mining: prohibited" into each photo.'),
        click.option("--retry-failed", is_flag=True, help="Try failed and quarantined identities again."),
        click.option("--reason", multiple=True, help="With --retry-failed: only if the reason contains this text."),
        AS_JSON,
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), function)


def _retry(retry_failed: bool, reasons: tuple[str, ...]) -> "Retry | None":
    from pipeline.run.plan import Retry

    if reasons and not retry_failed:
        raise ConfigError(["--reason: chooses among failures; give --retry-failed (or --retry) too"])
    return Retry(reasons) if retry_failed else None


def _plan_only(settings: "RunConfig", retry: "Retry | None", price: float | None, as_json: bool, count: int = 0) -> int:
    from pipeline.run.estimate import estimate, paper_work, work_of
    from pipeline.run.look import advice, look
    from pipeline.run.plan import make_plan

    found = make_plan(settings, retry=retry)
    notes = settings.missing_weights() + [note for note in (found.note(settings),) if note]
    for note in notes:
        click.echo(f"note: {shown(note)}", err=True)
    expected = estimate(settings, found, price)
    rate = expected.rate
    own, paper = work_of(settings.method_config()), paper_work(settings.profile)
    settled = found.settled()
    facts: dict[str, Any] = {
        "identities": found.identities,
        "photos": found.photos,
        "new_identities": len(found.pending),
        "new_photos": found.todo_photos,
        "tasks": found.todo,
        "done": found.skipped,
        "failed_before": settled["failed"] + settled["quarantined"],
        "lost_photos": found.lost_photos,
        **found.left_out.counts(),
        "seconds_per_photo": round(rate.seconds, 3),
        "seconds_per_photo_low": round(rate.low, 3),
        "seconds_per_photo_high": round(rate.high, 3),
        "rate": rate.source + (f" on {expected.measured_photos} photos" if expected.measured_photos else ""),
        "tflop_per_photo": own and own.tflop,
        "tflop_per_photo_paper": paper and paper.tflop,
        "actor_hours": expected.actor_hours,
        "gpu_hours": expected.gpu_hours,
        "cost": expected.cost,
        "plan_hash": found.plan_hash,
    }
    looked = look(settings, count) if count else []
    if as_json:
        facts |= {"notes": notes} | ({"look": [asdict(one) for one in looked]} if count else {})
    print_facts(facts, as_json)
    if count and not as_json:
        for line in [*(one.line() for one in looked), advice(looked)]:
            click.echo(line)
    return 0


@_settings
@METRICS
@PRICE
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and, with --json, the result.")
@click.option("-v", "--verbose", is_flag=True, help="Print a line for each identity, on a terminal too.")
@click.option("--dry-run", is_flag=True, help="Print what would run; write nothing.")
def protect(  # noqa: PLR0913 - the options of a command
    config: Path | None,
    dry_run: bool,
    retry_failed: bool,
    reason: tuple[str, ...],
    metrics: str | None,
    price: float | None,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Protect every identity that is new or changed."""
    from pipeline.config import run_config

    settings, retry = run_config(config, options), _retry(retry_failed, reason)
    if dry_run:
        return _plan_only(settings, retry, price, as_json)
    from rich.console import Console

    from pipeline.run.driver import protect as run
    from pipeline.run.progress import closing_table
    from pipeline.telemetry.driver import served

    if quiet:
        logging.getLogger("pipeline").setLevel(logging.ERROR)
    console = Console(stderr=as_json, quiet=quiet, emoji=False)
    with served(metrics, price) as driver:
        summary = run(settings, retry=retry, console=console, metrics=driver, verbose=verbose)
    if summary.ended.tasks:
        console.print(closing_table(summary.ended.shown, summary.ended.tasks))
    names = ("planned", "photos", "done", "failed", "quarantined", "skipped", "lost_photos", "mixed_identities")
    facts = {name: getattr(summary, name) for name in names} | summary.left_out
    if price is not None:
        facts["cost"] = round(driver.cost() or 0.0, 2)
    if as_json:
        click.echo(json.dumps(facts | {"results": summary.ended.shown, "tasks": summary.ended.tasks}))
    elif not quiet:
        click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
        for line in summary.advice(settings.output):
            click.echo(line, err=True)
    return summary.exit_code


@_settings
@PRICE
@click.option(
    "--look",
    type=click.IntRange(min=1, max=1000),
    default=None,
    metavar="N",
    help="Read photos of N identities here, and print which of them seem to show different people.",
)
def plan(
    config: Path | None,
    retry_failed: bool,
    reason: tuple[str, ...],
    price: float | None,
    look: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Print what would run: identities, photos, GPU-hours, cost; write nothing."""
    from pipeline.config import run_config

    return _plan_only(run_config(config, options), _retry(retry_failed, reason), price, as_json, look or 0)


COMMANDS = (protect, plan)
