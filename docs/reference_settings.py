"""The page of every setting, made from the fields; and Markdown of texts and tables."""

import ast
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import time
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from dladiff.settings import presets
from dladiff.settings.schema import MethodConfig
from dladiff.settings.validate import Settings, bounds, group
from pipeline.cluster import job_file as jobs
from pipeline.cluster.schedule import Schedule
from pipeline.config import RunConfig
from pipeline.retention.retain import Retention
from pipeline.storage.base import S3_OPTIONS

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
            table(("profile", "setting", "value"), _layers(presets.PROFILES)),
            table(("preset", "setting", "value"), _layers(presets.PRESETS)),
            "## A job file",
            table(("key", "meaning"), _keys(jobs.JobValues)),
            "### `tenants`",
            table(("key of a tenant", "meaning"), _keys(jobs.TenantValues)),
            "### `retention`",
            _settings(Retention),
            "### `schedule`",
            _settings(Schedule),
            "### `cluster`",
            *_nested(jobs.Cluster),
        ]
    )


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
    return ((f"`{key}`", as_markdown(about)) for key, about in docstrings(kind).items())


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
            lines.append((f"`{name}`", _default(field), allowed, as_markdown(about.get(name, ""))))
    return table(("setting", "default", "allowed", "meaning"), lines)


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


def as_markdown(text: str) -> str:
    """Return plain text as Markdown: what is not `code` stands for itself."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<|\[\]])", r"\\\1", part) for part in parts)


def table(head: tuple[str, ...], lines: typing.Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *lines))
