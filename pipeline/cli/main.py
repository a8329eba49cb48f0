"""The `dladiff` command: parse, call one function, return its exit code.

0 all done, 1 some failed or interrupted, 2 usage, 3 storage or a bug of this program.
"""

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import click

from dladiff.errors import ConfigError, DladiffError, StorageError
from pipeline.cli import evaluation as evaluation_commands
from pipeline.cli import jobs as job_commands
from pipeline.cli import models as model_commands
from pipeline.cli import operator as operator_commands
from pipeline.cli import output as output_commands
from pipeline.cli import preview as preview_commands
from pipeline.cli import run as run_commands
from pipeline.cli.options import Command
from pipeline.process.interrupts import interruptible
from pipeline.process.private import chosen_umask, private_process
from pipeline.storage.keys import redacted, short


class _Redacting(click.Group):
    """A click group that removes secrets from messages about wrong options and arguments."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments before the command."""
        with _redacted_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the arguments after the command, and run it."""
        with _redacted_usage():
            return super().invoke(ctx)


@contextlib.contextmanager
def _redacted_usage() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = redacted(error.message)  # type: ignore[misc]  # all subclasses format it themselves
        raise


def _print_version(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib.metadata import version as installed

        click.echo(f"dladiff {installed('dladiff')}")
        context.exit()


HELP = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command: click passes them on, but not to a command that is used on its own."""


@click.group(cls=_Redacting, context_settings=HELP)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def main() -> None:
    """Protect portrait photos against diffusion-model customization."""


def _trace_if_asked() -> None:
    if os.environ.get("DLADIFF_DEBUG") == "1":
        click.echo(redacted(traceback.format_exc()), err=True, nl=False)


def _said(error: DladiffError) -> int:
    """Print an error, one line a fault, and return the exit code."""
    _trace_if_asked()
    lines = error.faults if isinstance(error, ConfigError) else [str(error)]
    for line in lines:
        click.echo(f"error: {redacted(' '.join(line.split()))}", err=True)
    return 3 if isinstance(error, StorageError) else 2


def _guarded(function: Command, *, private: bool) -> Callable[..., None]:
    """Wrap a command: print errors as one line each on stderr and exit with its code. DLADIFF_DEBUG=1 adds tracebacks.

    A `private` command handles people's photos: other users of the machine must not read what it writes.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with interruptible():  # around the message too: a second signal must not cut it off
            try:
                if private:
                    private_process(chosen_umask())
                code = function(*args, **kwargs)
            except KeyboardInterrupt:
                click.echo("stopped: what is done is kept; run the same command again to continue", err=True)
                code = 1
            except DladiffError as error:
                code = _said(error)
            except OSError as error:  # of a local file: no permission, name too long, disk full
                _trace_if_asked()
                where = f"{short(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
                click.echo(f"error: {where}{redacted(error.strerror or str(error))}", err=True)
                code = 3
            except Exception:  # a bug: exit code 1 would mean that some photos failed
                click.echo(redacted(traceback.format_exc()), err=True, nl=False)
                click.echo(
                    "error: this is a fault of dladiff; what is done is kept. Please report the lines above", err=True
                )
                code = 3
        sys.exit(code)

    return run


@main.command(context_settings=HELP)
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    click.echo(installed("dladiff"))


@main.command(context_settings=HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script: eval "$(dladiff completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "dladiff", "_DLADIFF_COMPLETE").source())


@main.group(context_settings=HELP)
def models() -> None:
    """The Stable Diffusion models of the profiles: list, check, fetch, mirror."""


def _add(function: Command, group: click.Group = main, *, private: bool = False) -> None:
    params: list[click.Parameter] = list(reversed(getattr(function, "__click_params__", [])))
    name = function.__name__.rstrip("_")
    callback = _guarded(function, private=private)
    command = click.Command(name, HELP, callback=callback, params=params, help=function.__doc__)
    group.add_command(command)


for _command in (
    *run_commands.COMMANDS,
    *preview_commands.COMMANDS,
    *output_commands.COMMANDS,
    *operator_commands.COMMANDS,
    *evaluation_commands.COMMANDS,
):
    _add(_command, private=True)
for _about_jobs in job_commands.COMMANDS:
    _add(_about_jobs)
for _about_models in model_commands.COMMANDS:
    _add(_about_models, models)
