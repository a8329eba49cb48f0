"""Commands `nightly`, `retention` and `doctor`: parse, call one function, return its code."""

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dladiff.errors import ConfigError
from pipeline.cli.options import AS_JSON, JOB, METRICS, PRICE, output_option


@JOB
@click.option("--tenant", multiple=True, help="Run only this tenant; repeatable.")
@click.option("--ignore-window", is_flag=True, help="Start tenants at any hour.")
@click.option("--pushgateway", envvar="DLADIFF_PUSHGATEWAY", help="Send the outcomes to this Pushgateway.")
@click.option("--textfiles", type=click.Path(path_type=Path), help="Write the outcomes here for the node exporter.")
@METRICS
@PRICE
@click.option("--summary", type=click.Path(path_type=Path), help="Also write the summary as JSON here.")
@AS_JSON
def nightly(
    job: Path,
    tenant: tuple[str, ...],
    metrics: str | None,
    price: float | None,
    summary: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Run the tenants of a job file one after another in its time window; print a summary for mail."""
    from pipeline.cluster.job_file import load_job
    from pipeline.cluster.nightly import run_nightly
    from pipeline.run.driver import protect
    from pipeline.telemetry.driver import served

    with served(metrics, price) as driver:
        run = functools.partial(protect, metrics=driver)
        found = run_nightly(load_job(job), only=tenant, metrics=driver, protect=run, **options)
    facts = json.dumps(found.to_dict(), indent=1)
    click.echo(facts if as_json else found.text(), nl=as_json)
    if summary is not None:
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(facts, encoding="utf-8")
    return found.exit_code


@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings of a run: check its models, input and output."
)
@output_option(help="Output to check, without a configuration.")
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    help="Ray cluster to check: http://head:8265 asks its nodes from the head, ray://HOST:PORT or HOST:PORT from here.",
)
@AS_JSON
def doctor(config: Path | None, output: str | None, address: str | None, as_json: bool) -> int:
    """Check this machine, a run's models and storage, a cluster's nodes; exit code 1 when something is missing."""
    from pipeline.config import run_config
    from pipeline.doctor.look import doctor as look
    from pipeline.doctor.nodes import cluster_nodes, table

    run = run_config(config, {}) if config else None
    checks = look(run, output=output, address=address)
    reached = address is not None and checks[-1].ok
    if not as_json:
        for check in checks:
            click.echo(check.line())
    nodes = cluster_nodes(address, run, output) if address is not None and reached else []
    if as_json:
        facts = {"checks": [asdict(check) for check in checks], "nodes": [node.facts() for node in nodes]}
        click.echo(json.dumps(facts))
    elif nodes:
        for line in table(nodes):
            click.echo(line)
    return 0 if all(check.ok for check in checks) and all(node.ok for node in nodes) else 1


@output_option()
@click.option("--input", help="The run's photos: identities that are not there have left.")
@click.option("--layout", help="Layout of the input, as for protect.")
@click.option("--lists", help="Folder or bucket of a collection's lists, as for protect.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of the run; options override it.")
@click.option("--gone", is_flag=True, help="Delete identities whose originals left the input.")
@click.option("--older-than", type=click.IntRange(min=1), help="Delete photos protected at least so many days ago.")
@click.option("--records", default="delete", show_default=True, help="Records of identities that left: delete or keep.")
@click.option("--yes", is_flag=True, help="Delete; without it only print what would be deleted.")
@AS_JSON
def retention(
    config: Path | None, gone: bool, older_than: int | None, records: Any, yes: bool, as_json: bool, **options: Any
) -> int:
    """Delete protected photos and records that are no longer wanted; the input is never touched.

    Exit code 1: a page or result that shows people who left was not reached; a line names it.
    """
    from pipeline.config import run_config
    from pipeline.retention.retain import Retention, retain
    from pipeline.storage.keys import shown

    given = config is not None or options["input"] is not None
    run = run_config(config, options) if given else None
    output = run.output if run else options["output"]
    if not output:
        raise ConfigError(["output: is missing; give --output URI"])
    rule = Retention(gone=gone, protected_days=older_than or 0, records=records)
    found = retain(output, rule, run, really=yes)
    code = 1 if found.missed and yes else 0
    if as_json:
        facts = {"identities": [asdict(one) for one in found.due], "outside": found.outside, "missed": found.missed}
        click.echo(json.dumps({"deleted": yes} | facts))
        return code
    did = "deleted" if yes else "would delete"
    for line in (*(one.line() for one in found.due), *(f"what shows them in {shown(o)}" for o in found.outside)):
        click.echo(f"{did}: {line}")
    for line in found.missed:
        click.echo(f"not reached: {line}")
    end = "" if yes or not (found.due or found.outside) else "; nothing was deleted: --yes deletes"
    click.echo(f"{len(found.due)} identities, {sum(one.photos for one in found.due)} photos{end}")
    return code


COMMANDS = (nightly, retention, doctor)
