"""Pages of the site that are made from the code: settings, commands, stored tables. A hook of mkdocs (mkdocs.yml)."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow as pa
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference_settings import as_markdown, configuration, table  # mkdocs puts this folder on the path

from dladiff.core.formats import FORMATS, Format
from dladiff.evaluation.attacks import ATTACKS, Attack, AttackSettings
from dladiff.evaluation.metrics import METRICS
from dladiff.evaluation.metrics.record import Metric
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS, Preprocessing
from dladiff.settings.schedules import METHODS, PX, Method
from pipeline.cli.main import main
from pipeline.records import schema as rows
from pipeline.sources.layouts import LAYOUTS

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = {
    "PHOTOS": "`manifest/photos.parquet`: one row a photo",
    "IDENTITIES": "`manifest/identities.parquet`: one row an identity",
    "RECORDS": "`manifest/records.parquet`: one row a commit record, for the next plan",
    "PLAN": "`plan/plan-*.parquet`: one row a task that a run set out to do",
    "TODO": "`plan/`, while a large run lasts: one row a task",
    "RESULTS": "`results.parquet` of `dladiff evaluate`: one row an attack",
}
"""Where each table of pipeline/records/schema.py is stored."""


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
        parts += [f"## {SCHEMAS[name]}", table(("column", "type", "what"), (_column(field) for field in schema))]
    return "\n\n".join(parts)


def records() -> str:
    """Return the page of the records: methods, attacks, preprocessings, layouts, formats, metrics."""
    return "\n\n".join(
        [
            "# Methods, attacks, metrics",
            "Made from the records of the code: each stands in the file that does the work.",
            "## Compared methods (`dladiff protect --method NAME`)",
            table(("name", "paper", "what gradient ascent maximises", "bound, of 255"), map(_method, METHODS.values())),
            "## Attacks (`dladiff evaluate --attack NAME`)",
            table(
                ("name", "paper", "what is trained, or goes in", "source of the settings", "settings"),
                map(_attack, ATTACKS.values()),
            ),
            "## Before the attack (`dladiff evaluate --preprocessing NAME`)",
            table(("name", "what it does", "weights"), map(_preprocessing, PREPROCESSINGS.values())),
            "## Input layouts (`dladiff protect --layout NAME`)",
            table(("name", "identities"), ((f"`{one.name}`", as_markdown(one.about)) for one in LAYOUTS.values())),
            "## Output formats (`dladiff protect --format NAME`)",
            table(("name", "extension", "decoded pixels"), map(_format, FORMATS.values())),
            "## Metrics",
            table(("column", "heading", "what", "speaks for the protection"), map(_metric, METRICS.values())),
        ]
    )


def _method(method: Method) -> tuple[str, ...]:
    bound = f"{method.schedule.eta / PX:.4g}"
    return f"`{method.name}`", method.paper or "-", as_markdown(method.maximises), bound


def _attack(attack: Attack) -> tuple[str, ...]:
    kinds = (f"{kind}: {_changed(settings)}" for kind, settings in attack.settings().items())
    return (
        f"`{attack.name}`",
        attack.paper,
        as_markdown(attack.about),
        as_markdown(attack.source),
        as_markdown("; ".join(kinds)),
    )


def _changed(settings: AttackSettings) -> str:
    """Name the settings of an attack that differ from those of every attack; files that ship by their names."""
    plain, given = AttackSettings().to_dict(), settings.to_dict()
    changed = {k: Path(v).name if isinstance(v, str) else v for k, v in given.items() if v != plain[k]}
    return ", ".join(f"{name} {value}" for name, value in changed.items())


def _preprocessing(record: Preprocessing) -> tuple[str, ...]:
    return f"`{record.name}`", as_markdown(record.about), as_markdown(record.needs) or "-"


def _format(record: Format) -> tuple[str, ...]:
    return f"`{record.name}`", f"`{record.suffix}`", "differ from the encoded ones" if record.lossy else "as encoded"


def _metric(metric: Metric) -> tuple[str, ...]:
    column = f"`similarity.{metric.name}`" if metric.per_encoder else f"`{metric.name}`"
    return column, as_markdown(metric.heading), as_markdown(metric.about), metric.better


def schemas() -> dict[str, pa.Schema]:
    """Return the tables of pipeline/records/schema.py by name."""
    return {name: value for name, value in vars(rows).items() if isinstance(value, pa.Schema)}


def _command(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", as_markdown(inspect.cleandoc(command.help or "")), f"```\n{usage}\n```"]
    lines = [_option(o, context) for o in command.params if isinstance(o, click.Option) and not o.hidden]
    return "\n\n".join([*parts, table(("option", "meaning"), lines)] if lines else parts)


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    names, about = option.get_help_record(context) or ("", "")
    variable = f" Or `{option.envvar}` in the environment." if option.envvar else ""
    return f"`{names}`", as_markdown(about) + variable


def _column(field: pa.Field) -> tuple[str, str, str]:
    return f"`{field.name}`", f"`{field.type}`", as_markdown((field.metadata or {}).get(b"about", b"").decode())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/ (an event of mkdocs)."""
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
