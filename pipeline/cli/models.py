"""Commands of `dladiff models`: parse, call one function, return its code."""

import json
from typing import Any

import click

from pipeline.cli.options import AS_JSON, checked
from pipeline.storage.keys import shown

MODEL = click.argument("model")
GATED = " (asks for consent to its licence)"


@AS_JSON
def list_(as_json: bool) -> int:
    """List the known models, VAEs and encoders: where they are published, licence, and the local folder."""
    from pipeline.models.encoders import listed_encoders
    from pipeline.models.fetch import listed
    from pipeline.models.vaes import listed_vaes

    rows, vaes, encoders = listed(), listed_vaes(), listed_encoders()
    if as_json:
        click.echo(json.dumps([*rows, *vaes, *encoders]))
        return 0
    for row in rows:
        click.echo(shown(f"{row['profile']}: {row['resolution']} px, {row['licence']}, {_folder(row)}"))
        for hub_id in row["ids"]:
            click.echo(f"  {hub_id}" + GATED * (hub_id in row["gated"]))
        for hub_id in row["withdrawn"]:
            click.echo(f"  {hub_id} (withdrawn)")
    for row in vaes:
        click.echo(shown(f"{row['profile']}: VAE of {row['models']}, {row['licence']}, {_folder(row)}"))
        for hub_id in row["ids"]:
            click.echo(f"  {hub_id}" + GATED * (hub_id in row["gated"]))
    for row in encoders:
        where = f"in {row['folder']}" if row["folder"] else "not here"
        click.echo(shown(f"{row['profile']}: {row['file']}, {row['licence']}, {where}"))
        click.echo(f"  {row['place']}")
    return 0


@MODEL
@click.option("--profile", help="Profile that the model must fit, if MODEL is no profile.")
@AS_JSON
def check(model: str, profile: str | None, as_json: bool) -> int:
    """Check a model (profile, folder or hub id): checksums, architecture, no pickles; exit code 1 on a fault."""
    from dladiff.diffusion.catalogue import MODELS
    from dladiff.errors import ConfigError
    from pipeline.models.fetch import check as call

    if profile is not None and profile not in MODELS:
        raise ConfigError([f"--profile: {profile!r} is unknown; known: {', '.join(MODELS)}"])
    found = call(model, profile)
    if as_json:
        folder = str(found.folder) if found.folder else None
        click.echo(
            json.dumps({"folder": folder, "faults": found.faults, "notes": found.notes, "convert": found.convert})
        )
        return 1 if found.faults else 0
    for fault in found.faults:
        click.echo(f"fault: {shown(fault)}")
    for line in found.convert:
        click.echo(f"    {shown(line)}")
    for note in found.notes:
        click.echo(f"note: {shown(note)}")
    if not found.faults:
        click.echo(f"ok: {shown(str(found.folder))}")
    return 1 if found.faults else 0


@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--from",
    "source",
    callback=checked,
    help="Source: folder, s3://bucket/prefix or hub id; default: the hub's known ids.",
)
def fetch(models: tuple[str, ...], source: str | None) -> int:
    """Fetch models (profile, hub id, vae:NAME, or encoder:NAME with --from) to DLADIFF_MODELS, or
    ~/.cache/dladiff/models.
    """
    from dladiff.errors import ConfigError
    from pipeline.models.fetch import fetch as call

    if source is not None and len(models) > 1:
        raise ConfigError([f"--from: names the source of one model, and {len(models)} are named; fetch them in turn"])
    for model in models:
        click.echo(shown(str(call(model, source))))
    return 0


@MODEL
@click.argument("uri", callback=checked)
def mirror(model: str, uri: str) -> int:
    """Copy a local model with its checksums to a folder or s3://bucket/prefix that runs can read."""
    from pipeline.models.fetch import mirror as call

    pins = call(model, uri)
    click.echo(shown(f"{uri}: {len(pins.sha256)} files, {sum(pins.size.values()) / 2**30:.2f} GiB, {pins.digest()}"))
    return 0


def _folder(row: dict[str, Any]) -> str:
    if row["folder"] is None:
        return f"not here: dladiff models fetch {row['profile']}"
    origin = f" from {row['source']}@{row['revision'][:12]}" if row["source"] else ""
    return f"in {row['folder']}{origin}"


COMMANDS = (list_, check, fetch, mirror)
