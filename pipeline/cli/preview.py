"""Command `preview`: parse, call one function, return its code."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.cli.options import AS_JSON
from pipeline.storage.keys import shown


@click.argument("photo")
@click.option(
    "--output",
    "html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="HTML file; default: the photo's name and -preview.html, in this folder. Replaces only an earlier preview.",
)
@click.option("--profile", help="As for protect; default: tiny.")
@click.option("--faces", multiple=True, help="InsightFace pack, by name or folder; repeatable.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of a run's settings; options override it.")
@AS_JSON
def preview(photo: str, html: Path | None, config: Path | None, as_json: bool, **options: Any) -> int:
    """Protect one local PHOTO with the strengths faint, balanced and strong; write one HTML page that compares them.

    Runs on this machine without Ray. The page holds the original. Exit code 1: nothing protects the photo.
    """
    from pipeline.config import run_config
    from pipeline.report.preview import preview as call

    if sys.stderr.isatty():
        click.echo("protecting the photo at three strengths; the tiny profile takes about a minute", err=True)
    settings = run_config(config, options | {"input": ".", "output": "."})  # neither is read or written
    found = call(photo, settings, html)
    for note in found.notes:
        click.echo(f"note: {shown(note)}", err=True)
    if as_json:
        click.echo(json.dumps({"page": found.page, "strengths": found.strengths, "notes": found.notes}))
    else:
        for name, one in found.strengths.items():
            click.echo(f"{name}: {shown(_line(one))}")
        click.echo(f"page: {shown(found.page)}")
    return 1 if found.failed else 0


def _line(one: dict[str, Any]) -> str:
    scores = (("SSIMULACRA2", "ssimulacra2", ""), ("face", "ssimulacra2_face", ""), ("PSNR", "psnr", " dB"))
    parts = [f"{title} {one[key]:.1f}{unit}" for title, key, unit in scores if one[key] is not None]
    for entry in one["similarity"]:
        if entry["after"] is not None:
            held_out = "" if entry["optimised"] else " (held-out)"
            parts.append(f"cosine {entry['after']:.2f} by {entry['encoder']}{held_out}")
    return ", ".join([*parts, f"{one['seconds']:.1f} s"])


COMMANDS = (preview,)
