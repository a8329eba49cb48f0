"""Pages of the site that are made from the code: settings, commands, stored tables. A hook of mkdocs (mkdocs.yml)."""

import ast
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import time
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from dladiff.evaluation.attacks import ATTACKS, Attack, AttackSettings
from dladiff.evaluation.metrics import METRICS
from dladiff.evaluation.metrics.record import Metric
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS, Preprocessing
from dladiff.settings import presets
from dladiff.settings.schedules import METHODS, PX, Method
from dladiff.settings.schema import MethodConfig
from dladiff.settings.validate import Settings, bounds, group
from pipeline.cli.main import main
from pipeline.cluster import job_file as jobs
from pipeline.cluster.schedule import Schedule
from pipeline.config import RunConfig
from pipeline.records import schema as rows
from pipeline.retention.retain import Retention
from pipeline.sources.layouts import LAYOUTS
from pipeline.storage.base import S3_OPTIONS

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = {
    "PHOTOS": "`manifest/photos.parquet`: one row a photo",
    "IDENTITIES": "`manifest/identities.parquet`: one row an identity",
    "RECORDS": "`manifest/records.parquet`: one row a commit record, for the next plan",
    "PLAN": "`plan/plan-*.parquet`: one row a task that a run set out to do",
    "TODO": "`plan/`, while a large run lasts: one row a task",
    "RESULTS": "`results.parquet` of `dladiff evaluate`: one row an attack",
}
"""Where each table of pipeline/records/schema.py lies."""
KINDS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", time: "time, in quotes"}
RUN_RULES = {
    "profile": ", ".join(f"`{name}`" for name in presets.PROFILES),
    "preset": ", ".join(f"`{name}`" for name in presets.PRESETS),
    "s3": ", ".join(f"`{name}`" for name in S3_OPTIONS),
    "umask": "two octal digits of 0, 2 and 7, in quotes",
}


def configuration() -> str:
    """Return the page of every setting: of a run, of the method, of a job file."""
    return "\n\n".join(
        [
            "# Settings",
            "Made from the code. A run takes `--config run.yaml`; options of the command line win. "
            "Every fault is reported at once, an unknown name with the nearest known one.",
            "## A run",
            _settings(RunConfig, RUN_RULES),
            "## The method",
            "Under `method:` in `run.yaml`. Pixel quantities are in [0, 1] units: write 0.0275 for 7/255.",
            *_nested(MethodConfig),
            "## Profiles and presets",
            "What a profile sets differently from the defaults above; a preset goes over it, `method:` over both.",
            _table(("profile", "setting", "value"), _layers(presets.PROFILES)),
            _table(("preset", "setting", "value"), _layers(presets.PRESETS)),
            "## A job file",
            _table(("key", "meaning"), _keys(jobs.JobValues)),
            "### `tenants`",
            _table(("key of a tenant", "meaning"), _keys(jobs.TenantValues)),
            "### `retention`",
            _settings(Retention),
            "### `schedule`",
            _settings(Schedule),
            "### `cluster`",
            *_nested(jobs.Cluster),
        ]
    )


def commands() -> str:
    """Return the page of every command with its arguments and options, groups inside groups too."""
    head = "# Commands\n\nMade from the command line itself: what `dladiff COMMAND --help` prints."
    codes = "Exit codes: 0 all done; 1 some failed, the rest is there; 2 bad usage or settings; 3 storage out of reach."
    found = contexts(click.Context(main, None, "dladiff", **main.context_settings))
    return "\n\n".join([head, codes, *(_command(context) for context in found)])


def contexts(context: click.Context) -> Iterator[click.Context]:
    """Yield a context for every command below this one, whose `command_path` is its full name."""
    group = context.command
    assert isinstance(group, click.Group)
    for name, command in sorted(group.commands.items()):
        inner = click.Context(command, context, name, **command.context_settings)
        yield inner
        if isinstance(command, click.Group):
            yield from contexts(inner)


def manifest() -> str:
    """Return the page of every stored table: column, Arrow type, unit or meaning."""
    parts = [
        "# Manifest",
        "Made from the Arrow schemas of `pipeline/records/schema.py`. Keys are relative to the output.",
    ]
    for name, schema in schemas().items():
        parts += [f"## {SCHEMAS[name]}", _table(("column", "type", "what"), (_column(field) for field in schema))]
    return "\n\n".join(parts)


def records() -> str:
    """Return the page of what an evaluation can name: methods, attacks, preprocessings, metrics."""
    return "\n\n".join(
        [
            "# Methods, attacks, metrics",
            "Made from the records of the code: each stands in the file that does the work.",
            "## Compared methods (`dladiff protect --method NAME`)",
            _table(
                ("name", "paper", "what gradient ascent maximises", "bound, of 255"), map(_method, METHODS.values())
            ),
            "## Attacks (`dladiff evaluate --attack NAME`)",
            _table(
                ("name", "paper", "what is trained, or goes in", "source of the settings", "settings"),
                map(_attack, ATTACKS.values()),
            ),
            "## Before the attack (`dladiff evaluate --preprocessing NAME`)",
            _table(("name", "what it does", "weights"), map(_preprocessing, PREPROCESSINGS.values())),
            "## Input layouts (`dladiff protect --layout NAME`)",
            _table(("name", "identities"), ((f"`{one.name}`", _text(one.about)) for one in LAYOUTS.values())),
            "## Metrics",
            _table(("column", "heading", "what", "speaks for the protection"), map(_metric, METRICS.values())),
        ]
    )


def _method(method: Method) -> tuple[str, ...]:
    bound = f"{method.schedule.eta / PX:.4g}"
    return f"`{method.name}`", method.paper or "-", _text(method.maximises), bound


def _attack(attack: Attack) -> tuple[str, ...]:
    kinds = (f"{kind}: {_changed(settings)}" for kind, settings in attack.settings().items())
    return f"`{attack.name}`", attack.paper, _text(attack.about), _text(attack.source), _text("; ".join(kinds))


def _changed(settings: AttackSettings) -> str:
    """Name the settings of an attack that differ from those of every attack; files that ship by their names."""
    plain, given = AttackSettings().to_dict(), settings.to_dict()
    changed = {k: Path(v).name if isinstance(v, str) else v for k, v in given.items() if v != plain[k]}
    return ", ".join(f"{name} {value}" for name, value in changed.items())


def _preprocessing(record: Preprocessing) -> tuple[str, ...]:
    return f"`{record.name}`", _text(record.about), _text(record.needs) or "-"


def _metric(metric: Metric) -> tuple[str, ...]:
    column = f"`similarity.{metric.name}`" if metric.per_encoder else f"`{metric.name}`"
    return column, _text(metric.heading), _text(metric.about), metric.better


def schemas() -> dict[str, pa.Schema]:
    """Return the tables of pipeline/records/schema.py by name."""
    return {name: value for name, value in vars(rows).items() if isinstance(value, pa.Schema)}


@functools.cache
def docstrings(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a class, its lines joined."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _keys(kind: type[Settings]) -> Iterator[tuple[str, str]]:
    return ((f"`{key}`", _text(about)) for key, about in docstrings(kind).items())


def _nested(kind: type[Settings], path: str = "") -> Iterator[str]:
    """Yield the table of a group of settings, then a heading and a table for each group among its fields."""
    yield _settings(kind)
    for name, field in kind.model_fields.items():
        if inner := group(field):
            yield f"### `{path}{name}`"
            yield from _nested(inner, f"{path}{name}.")


def _settings(kind: type[Settings], rules: Mapping[str, str] = types.MappingProxyType({})) -> str:
    about, hints = docstrings(kind), typing.get_type_hints(kind)
    lines = []
    for name, field in kind.model_fields.items():
        if not group(field):
            allowed = rules.get(name) or _range(field) or _kind(hints[name])
            lines.append((f"`{name}`", _default(field), allowed, _text(about.get(name, ""))))
    return _table(("setting", "default", "allowed", "meaning"), lines)


def _range(field: FieldInfo) -> str:
    low, high = bounds(field)
    return "" if low is None else f"at least {low}" if high is None else f"{low} to {high}"


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if origin is tuple:
        return f"list of {KINDS[typing.get_args(hint)[0]]}"
    return KINDS.get(hint) or "name: value"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    return "none" if value in (None, "") else f"`{_value(value)}`"


def _value(value: Any) -> str:
    """Return a value as a line of YAML, a float rounded to four digits."""
    if isinstance(value, float):
        value = float(f"{value:.4g}")
    if isinstance(value, time):
        return value.strftime("%H:%M")
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _layers(layers: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    def flat(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{path}{name}.")
            else:
                yield f"{path}{name}", "must be given" if value == "" else f"`{_value(value)}`"

    for layer, values in layers.items():
        yield from ((f"`{layer}`", f"`{name}`", value) for name, value in flat(values, ""))


def _command(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", _text(inspect.cleandoc(command.help or "")), f"```\n{usage}\n```"]
    lines = [_option(o, context) for o in command.params if isinstance(o, click.Option) and not o.hidden]
    return "\n\n".join([*parts, _table(("option", "meaning"), lines)] if lines else parts)


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    names, about = option.get_help_record(context) or ("", "")
    variable = f" Or `{option.envvar}` in the environment." if option.envvar else ""
    return f"`{names}`", _text(about) + variable


def _column(field: pa.Field) -> tuple[str, str, str]:
    return f"`{field.name}`", f"`{field.type}`", _text((field.metadata or {}).get(b"about", b"").decode())


def _text(text: str) -> str:
    """Return plain text as Markdown: what is not `code` stands for itself."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<|\[\]])", r"\\\1", part) for part in parts)


def _table(head: tuple[str, ...], lines: typing.Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *lines))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie in no folder of docs/ (an event of mkdocs)."""
    made = {
        "reference/configuration.md": configuration(),
        "reference/commands.md": commands(),
        "reference/manifest.md": manifest(),
        "reference/records.md": records(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "changes.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make a link of each page that a text names by its path, as `docs/limits.md` (an event of mkdocs)."""
    up = "../" * page.file.src_uri.count("/")

    def link(found: re.Match[str]) -> str:
        inside = files.get_file_from_path(found[1]) is not None
        return f"[{found[0]}]({up}{found[1]})" if inside else found[0]

    return re.sub(r"(?<!\[)`docs/([\w./-]+\.md)`", link, markdown)
