"""Commands about an output: parse, call one function, return its code."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.options import AS_JSON, INPUTS, OUTPUT, print_facts


@OUTPUT
@click.option("--retry", is_flag=True, help="Reset these failures, so that the next run tries them again.")
@click.option("--reason", multiple=True, help="Only failures whose reason contains this text; repeatable.")
@AS_JSON
def failed(output: str, retry: bool, reason: tuple[str, ...], as_json: bool) -> int:
    """List failed identities, and failed photos of other identities, with the reason."""
    from pipeline.records.commit import open_run
    from pipeline.run import failures
    from pipeline.run.plan import Retry
    from pipeline.storage.keys import shown

    storage, which = open_run(output, begun=False), Retry(reason)
    if retry:
        count = failures.forget(storage, which)
        click.echo(
            json.dumps({"forgotten": count}) if as_json else f"{count} failures reset; the next run tries them again"
        )
        return 0
    rows = failures.listed(storage, which)
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for row in rows:
            click.echo(shown(f"{row['identity']}: {row['status']}: {row['reason']}"))
    return 1 if rows else 0


@OUTPUT
@AS_JSON
def finalise(output: str, as_json: bool) -> int:
    """Rebuild both manifests from the records."""
    from pipeline.records.commit import open_run
    from pipeline.records.lease import Lease
    from pipeline.records.manifest import write_manifest

    storage = open_run(output)
    with Lease(storage):
        photos, identities = write_manifest(storage, force=True)
    print_facts({"photos": photos, "identities": identities}, as_json)
    return 0


@OUTPUT
@INPUTS
@AS_JSON
def verify(output: str, inputs: tuple[str, ...], as_json: bool) -> int:
    """Read every stored photo again: checksum, size, bound; exit code 1 on a fault."""
    from pipeline.records.commit import open_run
    from pipeline.run.verify import verify as check
    from pipeline.storage.keys import shown

    result = check(open_run(output), inputs)
    _print_notes(result.notes)
    if as_json:
        click.echo(json.dumps({name: value for name, value in asdict(result).items() if name != "notes"}))
    else:
        for fault in result.faults:
            click.echo(f"fault: {shown(fault)}")
        for orphan in result.orphans:
            click.echo(f"orphan: {shown(orphan)}")
        counts = f"{len(result.faults)} faults, {len(result.orphans)} files that no record names"
        rest = result.photos - result.compared
        gone = f" ({rest} not: gone, changed, a link, outside of the input, or at fault)" if rest else ""
        click.echo(f"{result.photos} photos, {result.compared} compared with their source{gone}, {counts}")
        if result.left:
            click.echo(f"left: {result.left} photos of the latest plan have no record; the next protect does them")
    return 1 if result.faults else 0


@OUTPUT
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Local file, else report/index.html in the output.",
)
@click.option("--photos", type=click.IntRange(min=1), default=200, show_default=True, help="Most photos to show.")
@click.option("--no-originals", is_flag=True, help="Show no originals, for a page that others may see.")
@INPUTS
@AS_JSON
def report(
    output: str, html: Path | None, photos: int, no_originals: bool, inputs: tuple[str, ...], as_json: bool
) -> int:
    """Write one HTML page: before, after, change, scores, distributions. It shows small pictures of the originals."""
    from pipeline.report.write import write_report
    from pipeline.storage.open import open_storage

    found = asdict(write_report(open_storage(output), html, photos, originals=not no_originals, inputs=inputs))
    _print_notes(found.pop("notes"))
    print_facts(found, as_json)
    return 0


@click.argument("photo")
@OUTPUT
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of the run's settings.")
@click.option("--profile", help="Profile of the run, if it was not tiny.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), default=Path("explain.html"), show_default=True
)
@INPUTS
@AS_JSON
def explain(
    photo: str,
    output: str,
    config: Path | None,
    profile: str | None,
    html: Path,
    inputs: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show what a surrogate sees in PHOTO (a file or URI of a run's input) and in its protected version."""
    from pipeline.config import read_yaml, run_config
    from pipeline.report.explain import explain as call

    named = read_yaml(config).get("input") if config else None  # the operator names it, like --input
    settings = run_config(config, {"input": named or photo, "output": output, "profile": profile})
    found = asdict(call(photo, settings, html, inputs or ((settings.input,) if named else ())))
    _print_notes(found.pop("notes"))
    print_facts(found, as_json)
    return 0


def _print_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr."""
    from pipeline.storage.keys import shown

    for note in notes:
        click.echo(f"note: {shown(note)}", err=True)


COMMANDS = (failed, finalise, verify, report, explain)
