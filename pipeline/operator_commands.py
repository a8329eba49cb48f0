"""Commands of the `dladiff` group for whoever runs a cluster or a night: parse, call one function, return its code."""

import functools
import json
from pathlib import Path
from typing import Any

import click

JOB = click.argument("job", type=click.Path(path_type=Path))
NAME = click.argument("name")
ADDRESS = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    required=True,
    help="Dashboard of the cluster, as http://head:8265 (or RAY_API_SERVER_ADDRESS).",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


@JOB
@ADDRESS
@click.option("--wait", is_flag=True, help="Return when the job ends, with its exit code.")
@click.option("--follow", is_flag=True, help="The same, and print its output.")
@click.option("--again", is_flag=True, help="Run a job that succeeded before once more.")
def submit(job: Path, address: str, wait: bool, follow: bool, again: bool) -> int:
    """Submit a job file to a Ray cluster, once."""
    from pipeline.jobs import load_job
    from pipeline.submit import submit as call

    found = call(load_job(job), address, wait=wait, follow=follow, again=again, echo=click.echo)
    click.echo(found.sentence(), err=True)
    return found.exit_code or 0


@ADDRESS
@AS_JSON
def jobs(address: str, as_json: bool) -> int:
    """List the jobs of a cluster and how they stand."""
    from pipeline.submit import jobs as listed

    found = listed(address)
    lines = [json.dumps(found)] if as_json else [f"{name}: {status.lower()}" for name, status in found.items()]
    for line in lines:
        click.echo(line)
    return 0


@NAME
@ADDRESS
@click.option("--follow", is_flag=True, help="Go on until the job ends.")
def logs(name: str, address: str, follow: bool) -> int:
    """Print the output of a job."""
    from pipeline.submit import logs as call

    call(address, name, follow=follow, echo=click.echo)
    return 0


@NAME
@ADDRESS
def stop(name: str, address: str) -> int:
    """End a job; what is committed stays, and submitting it again goes on from there."""
    from pipeline.submit import stop as call

    click.echo(call(address, name).sentence())
    return 0


@JOB
@click.option("--output", type=click.Path(path_type=Path), default=Path("cluster/kuberay"), show_default=True)
def render(job: Path, output: Path) -> int:
    """Write the Kubernetes manifests of a job file."""
    from pipeline.jobs import load_job
    from pipeline.render import write

    for path in write(load_job(job), output):
        click.echo(path)
    return 0


@JOB
@click.option("--tenant", multiple=True, help="Only this one; repeatable.")
@click.option("--ignore-window", is_flag=True, help="Begin tenants at any hour.")
@click.option("--pushgateway", envvar="DLADIFF_PUSHGATEWAY", help="Tell the ends to this Pushgateway.")
@click.option("--textfiles", type=click.Path(path_type=Path), help="Write the ends here for the node exporter.")
@click.option("--metrics", envvar="DLADIFF_METRICS", help="Serve progress to Prometheus at [HOST:]PORT.")
@click.option("--summary", type=click.Path(path_type=Path), help="Write the summary as JSON here as well.")
@AS_JSON
def nightly(
    job: Path, tenant: tuple[str, ...], metrics: str | None, summary: Path | None, as_json: bool, **options: Any
) -> int:
    """Run the tenants of a job file one after another, in its time window; print a summary fit for mail."""
    from pipeline.driver_metrics import served
    from pipeline.jobs import load_job
    from pipeline.nightly import run_nightly
    from pipeline.run import protect

    with served(metrics) as driver:
        run = functools.partial(protect, metrics=driver)
        found = run_nightly(load_job(job), only=tenant, protect=run, **options)
    facts = json.dumps(found.to_dict(), indent=1)
    if summary is not None:
        summary.write_text(facts, encoding="utf-8")
    click.echo(facts if as_json else found.text(), nl=as_json)
    return found.exit_code


@click.option("--config", type=click.Path(path_type=Path), help="Settings of a run: its models and places.")
@click.option("--output", help="Storage to try, without a configuration.")
@click.option("--address", envvar="RAY_API_SERVER_ADDRESS", help="A Ray cluster to reach.")
def doctor(config: Path | None, output: str | None, address: str | None) -> int:
    """Say what this machine has and lacks; exit code 1 when something is missing."""
    from pipeline.config import run_config
    from pipeline.doctor import doctor as look

    checks = look(run_config(config, {}) if config else None, output=output, address=address)
    for check in checks:
        click.echo(check.line())
    return 0 if all(check.ok for check in checks) else 1


COMMANDS = (submit, jobs, logs, stop, render, nightly, doctor)
