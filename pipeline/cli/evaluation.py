"""Commands `evaluate`, `calibrate` and `mos`: parse the options, call one function, return its exit code."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dladiff.errors import ConfigError
from pipeline.cli.options import AS_JSON, INPUTS


def _renamed(new: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], None]:
    def refuse(_context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> None:
        if values:
            raise click.UsageError(f"{option.opts[0]}: renamed to {new}")

    return refuse


@click.option("--output", required=True, help="Folder or s3://bucket/prefix of the run under test.")
@click.option("--results", required=True, help="Folder or s3://bucket/prefix for rows, faces and tables.")
@INPUTS
@click.option("--name", default="dladiff", show_default=True, help="Name of the method under test in the tables.")
@click.option("--compare", multiple=True, metavar="NAME=URI", help="Another method's run, same photos; repeatable.")
@click.option("--references", help="Folder or bucket with a folder of unprotected photos for each identity.")
@click.option(
    "--attack", "attacks", multiple=True, help="Attack: dreambooth, lora, ip_adapter_faceid, ...; repeatable."
)
@click.option(
    "--preprocessing",
    "preprocessings",
    multiple=True,
    help="Preprocessing before the attack: none, jpeg75, ...; NAME=PATH for a purifier's weights; repeatable.",
)
@click.option(
    "--rescore",
    "rescores",
    multiple=True,
    help="Score each generated picture a second time after this preprocessing (blur, jpeg75, NAME=FOLDER); repeatable.",
)
@click.option("--prompt", "prompts", multiple=True, help="Prompt of the generated pictures; repeatable.")
@click.option("--base", "bases", multiple=True, help="Base model: embedded or a folder; main one first; repeatable.")
@click.option(
    "--evaluator",
    "evaluators",
    multiple=True,
    help="Encoder that compares faces: embedded:NAME, an ONNX file, a pack, or adapter:NAME; repeatable.",
)
@click.option(
    "--calibration",
    "calibrations",
    multiple=True,
    help="File of `dladiff calibrate`: the cosines at which encoders verify a person; repeatable.",
)
@click.option(
    "--threshold", multiple=True, metavar="NAME=VALUE", help="Cosine at which an encoder verifies a person; repeatable."
)
@click.option("--judge", multiple=True, hidden=True, expose_value=False, callback=_renamed("--evaluator"))
@click.option("--share", "shares", multiple=True, type=int, help="% of the photos that are protected; repeatable.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Seed of the attacks; repeatable.")
@click.option("--set", "changes", multiple=True, metavar="ATTACK.FIELD=VALUE", help="Setting of an attack; repeatable.")
@click.option("--count", type=int, help="Generated pictures per prompt (16).")
@click.option("--photos", type=int, help="Maximum number of photos of an identity that the attacker has (4).")
@click.option("--identities", type=int, help="Maximum number of identities.")
@click.option("--kept", type=int, help="Pictures stored per prompt and row (8).")
@click.option("--features", help="Inception as an ONNX file, for FID.")
@click.option("--fiqa", help="Face-quality network as an ONNX file, for FIQA.")
@click.option("--lpips", help="LPIPS, backbone and heads, as one ONNX file.")
@click.option("--gpus", type=float, help="GPUs that an actor reserves (0).")
@click.option("--actors", type=int, help="Maximum number of actors.")
@click.option("--dry-run", is_flag=True, help="Print the number of rows to run; write nothing.")
@click.option("--tables-only", is_flag=True, help="Write the tables of the finished rows; run nothing.")
@AS_JSON
def evaluate(
    compare: tuple[str, ...],
    changes: tuple[str, ...],
    threshold: tuple[str, ...],
    dry_run: bool,
    tables_only: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Attack the protected photos of a run, measure the attacks, and write the paper's tables."""
    from pipeline.evaluate.config import EvaluateConfig
    from pipeline.evaluate.driver import evaluate as call

    given = {key: value for key, value in options.items() if value not in (None, ())}
    given |= {"compare": _pairs("--compare", compare), "thresholds": _thresholds(threshold)}
    config = EvaluateConfig(settings=_settings(changes), **given)
    counts = call(config, dry_run=dry_run, tables_only=tables_only, echo=functools.partial(click.echo, err=True))
    facts = dataclasses.asdict(counts)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
        if not dry_run:
            click.echo(f"tables: {config.results.rstrip('/')}/tables.html, tables.md, results.parquet")
    return counts.exit_code


@click.option("--people", required=True, help="Folder or s3://bucket/prefix with a folder of photos of each person.")
@click.option(
    "--evaluator",
    "evaluators",
    multiple=True,
    required=True,
    help="Encoder: embedded:NAME, an ONNX file, a pack, or adapter:NAME; repeatable.",
)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
@click.option(
    "--false-accept-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=1e-3,
    show_default=True,
    help="Share of the comparisons of different people that reach the threshold.",
)
@click.option("--source", default="", help="What the photos are, for the tables.")
@AS_JSON
def calibrate(
    people: str, evaluators: tuple[str, ...], out: Path, false_accept_rate: float, source: str, as_json: bool
) -> int:
    """Find the cosine at which encoders verify a person, from photos of many people who are not in the evaluation.

    Compares each photo with the mean of up to 16 photos of every other person. Runs on this machine without Ray.
    """
    from pipeline.evaluate.calibrate import calibrate as call
    from pipeline.evaluate.thresholds import about

    echo = functools.partial(click.echo, err=True)
    found = call(people, evaluators, out, far=false_accept_rate, source=source, echo=echo)
    for one in found:
        click.echo(json.dumps(one.to_dict()) if as_json else f"{one.encoder}: {about(one)}")
    if not as_json:
        click.echo(f"thresholds: {out}; give it to `dladiff evaluate --calibration`")
    return 0


@click.argument("action", type=click.Choice(["serve", "summary"]))
@click.option("--results", required=True, help="The --results of `dladiff evaluate`.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="Port of the local page.")
@click.option(
    "--faces",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Maximum number of faces of each attack and method.",
)
@click.option("--pairs", is_flag=True, help="Ask whether a real photo and a generated picture show the same person.")
@click.option("--references", help="serve --pairs: folder or bucket with a folder of clean photos for each identity.")
@AS_JSON
def mos(action: str, results: str, port: int, faces: int, pairs: bool, references: str | None, as_json: bool) -> int:
    """Collect ratings of generated faces on a local page (serve), or print their means and agreement (summary)."""
    from pipeline.evaluate.mos import summary as summarise
    from pipeline.evaluate.mos_server import serve
    from pipeline.evaluate.pair_answers import pair_summary
    from pipeline.evaluate.ratings import FACES_SHEET, PAIRS_SHEET
    from pipeline.storage.open import open_storage

    if (action == "serve" and pairs) != (references is not None):
        raise ConfigError(["--references: `mos serve --pairs` needs it, and nothing else does"])
    storage = open_storage(results)
    if action == "serve":
        photos = None if references is None else open_storage(references)
        serve(storage, port, max_faces=faces, references=photos, echo=click.echo)
        return 0
    rows = pair_summary(storage) if pairs else summarise(storage)
    if as_json:
        click.echo(json.dumps([{name: row[name] for name in row if name != "estimate"} for row in rows]))
        return 0
    if not rows:
        file, option = (PAIRS_SHEET.file, " --pairs") if pairs else (FACES_SHEET.file, "")
        click.echo(f"no rating in {storage.uri_of(file)} yet; `dladiff mos serve{option}` collects them")
    for row in rows:
        click.echo(_of_pairs(row) if pairs else _of_faces(row))
    return 0


def _of_faces(row: dict[str, Any]) -> str:
    who = f"{row['ratings']} ratings by {row['raters']} raters of {row['faces']} faces"
    return _rated(row, "mos", f"{who}, alpha {_two(row['alpha'])}")


def _of_pairs(row: dict[str, Any]) -> str:
    who = f"{row['answers']} answers by {row['raters']} raters to {row['pairs']} pairs of {row['people']} people"
    return _rated(row, "same", f"cannot say {_two(row['cannot_say'])}, {who}")


def _rated(row: dict[str, Any], name: str, rest: str) -> str:
    from pipeline.storage.keys import shown

    interval = f" ({_two(row['low'])} to {_two(row['high'])})" if row["low"] is not None else ""
    what = f"{row['attack']}, {row['condition']}, {row['prompt']!r}"
    return shown(f"{what}: {'same ' if name == 'same' else ''}{_two(row[name])}{interval}, {rest}")


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    faults = [f"{option}: {value!r} is not NAME=VALUE" for value in values if not all(value.partition("="))]
    pairs = dict(value.split("=", 1) for value in values if not faults)
    if len(pairs) < len(values) and not faults:
        faults = [f"{option}: a name is given twice"]
    if faults:
        raise ConfigError(faults)
    return pairs


def _thresholds(values: tuple[str, ...]) -> dict[str, Any]:
    pairs = {name: _value(text) for name, text in _pairs("--threshold", values).items()}
    return {name: float(value) if isinstance(value, int) else value for name, value in pairs.items()}


def _settings(changes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {}
    for name, text in _pairs("--set", changes).items():
        attack, dot, setting = name.partition(".")
        if not dot:
            raise ConfigError([f"--set: {name!r} is not ATTACK.FIELD, such as lora.steps"])
        settings.setdefault(attack, {})[setting] = _value(text)
    return settings


def _value(text: str) -> int | float | str:
    """Parse a whole number, a number such as 5e-3, or else text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


COMMANDS = (evaluate, calibrate, mos)
