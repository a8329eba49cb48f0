"""Options and output shared by several commands."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.storage.keys import shown
from pipeline.storage.open import address_fault

Command = Callable[..., int]
"""Returns the exit code."""

F = TypeVar("F", bound=Callable[..., Any])


def finite(value: float | None) -> float | None:
    """Return a number. Raises BadParameter for NaN."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number")
    return value


def checked(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Return an address. Raises BadParameter for a malformed one, before the command starts."""
    fault = address_fault(value) if value is not None else None
    if fault:
        raise click.BadParameter(fault)
    return value


def output_option(**attributes: Any) -> Callable[[F], F]:
    """Return the option of a run's output; its address is checked before the command starts."""

    return click.option("--output", callback=checked, **{"help": "Folder or s3://bucket/prefix of a run."} | attributes)


def addresses(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses. Raises BadParameter for a malformed one, before the command starts."""
    for value in values:
        if fault := address_fault(value):
            raise click.BadParameter(fault)
    return values


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
JOB = click.argument("job", type=click.Path(path_type=Path))
OUTPUT = output_option(required=True)
INPUTS = click.option(
    "--input",
    "inputs",
    multiple=True,
    callback=lambda _context, _option, values: addresses(values),
    help="Folder, s3://bucket/prefix or index file of the run's photos: originals are read below it and nowhere else; "
    "repeatable. Default: the input that the output records.",
)
METRICS = click.option(
    "--metrics",
    envvar="DLADIFF_METRICS",
    default=lambda: os.environ.get("DLADIFF_JOB_METRICS"),  # set by `submit`; what the node sets itself counts more
    help="Serve metrics for Prometheus at [HOST:]PORT.",
)
PRICE = click.option(
    "--price",
    type=click.FloatRange(min=0, max=1e9),
    callback=lambda _context, _option, value: finite(value),
    envvar="DLADIFF_PRICE",
    help="Price of one GPU-hour (actor-hour without GPUs), in any currency.",
)


def print_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print names and values, one a line without control characters, or as JSON."""
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            text = "; ".join(map(str, value)) if isinstance(value, list) else value
            click.echo(shown(f"{name.replace('_', ' ')}: {'-' if text in (None, '') else text}"))
