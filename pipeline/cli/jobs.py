"""Commands for jobs on a cluster, and `status`: parse, call one function, return its code."""

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dladiff.errors import ConfigError
from pipeline.cli.options import AS_JSON, JOB, output_option, print_facts

NAME = click.argument("name")
ADDRESS = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    required=True,
    help="Dashboard of the cluster, as http://head:8265 (or RAY_API_SERVER_ADDRESS).",
)


@JOB
@ADDRESS
@click.option("--wait", is_flag=True, help="Wait until the job ends; return its exit code.")
@click.option("--follow", is_flag=True, help="Like --wait, and print the job's output.")
@click.option("--again", is_flag=True, help="Run a job again that succeeded before.")
@AS_JSON
def submit(job: Path, address: str, wait: bool, follow: bool, again: bool, as_json: bool) -> int:
    """Submit a job file to a Ray cluster, once."""
    from pipeline.cluster.job_file import load_job
    from pipeline.cluster.submit import submit as call

    echo = functools.partial(click.echo, err=as_json)
    found = call(load_job(job, elsewhere=True), address, wait=wait, follow=follow, again=again, echo=echo)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        click.echo(found.sentence(), err=True)
    return found.exit_code or 0


@ADDRESS
@AS_JSON
def jobs(address: str, as_json: bool) -> int:
    """List the jobs of a cluster and their status."""
    from pipeline.cluster.submit import jobs as listed

    found = listed(address)
    lines = [json.dumps(found)] if as_json else [f"{name}: {status.lower()}" for name, status in found.items()]
    for line in lines:
        click.echo(line)
    return 0


@NAME
@ADDRESS
@click.option("--follow", is_flag=True, help="Print until the job ends.")
def logs(name: str, address: str, follow: bool) -> int:
    """Print the output of a job."""
    from pipeline.cluster.submit import logs as call

    call(address, name, follow=follow, echo=click.echo)
    return 0


@NAME
@ADDRESS
@AS_JSON
def stop(name: str, address: str, as_json: bool) -> int:
    """Stop a job; committed work stays, and submitting the job again continues it."""
    from pipeline.cluster.submit import stop as call

    found = call(address, name)
    click.echo(json.dumps(asdict(found)) if as_json else found.sentence())
    return 0


@JOB
@click.option("--output", type=click.Path(path_type=Path), default=Path("cluster/kuberay"), show_default=True)
def render(job: Path, output: Path) -> int:
    """Write the Kubernetes manifests of a job file."""
    from pipeline.cluster.job_file import load_job
    from pipeline.cluster.render import write

    for path in write(load_job(job, elsewhere=True), output):
        click.echo(path)
    return 0


@output_option()
@click.option("--job", "name", help="A submitted job, by the id that `dladiff jobs` lists; needs --address.")
@click.option("--address", envvar="RAY_API_SERVER_ADDRESS", help="Dashboard of the job's cluster.")
@click.option("--watch", is_flag=True, help="Repeat until nothing is left or no run is active; needs --output.")
@click.option("--every", type=click.FloatRange(min=0.5), default=5, show_default=True, help="Seconds between two.")
@AS_JSON
def status(output: str | None, name: str | None, address: str | None, watch: bool, every: float, as_json: bool) -> int:
    """Print counts of done, failed, quarantined and left tasks, with rates; or a submitted job's status; or both."""
    facts: dict[str, Any] = {}
    if watch:
        from rich.console import Console

        from pipeline.run.status import watch as look
        from pipeline.storage.open import open_storage

        if output is None or as_json or name is not None:
            raise ConfigError(["--watch: needs --output, and neither --json nor --job"])
        return look(open_storage(output), Console(emoji=False), every)
    if name is not None:
        from pipeline.cluster.submit import job_status

        if address is None:
            raise ConfigError(["--job: needs --address (or RAY_API_SERVER_ADDRESS), as http://head:8265"])
        found = job_status(address, name)
        facts |= {"job": found.submission_id, "job_status": found.status.lower(), "exit_code": found.exit_code}
    if output is not None:
        from pipeline.records.commit import open_run
        from pipeline.run.status import status as read

        facts |= read(open_run(output, begun=False))
    if not facts:
        raise ConfigError(["status: give --output URI, or --job NAME with --address, or both"])
    print_facts(facts, as_json)
    return 0


COMMANDS = (submit, jobs, logs, stop, status, render)
