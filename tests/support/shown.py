"""What pages show to be typed: lines in blocks of code, spans of code in running text, and what parses them."""

import re
import shlex
from pathlib import Path

import click

from pipeline.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^(?: {4}.*\n)+", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def pages() -> list[str]:
    """Return README, CONTRIBUTING and every page of docs/, relative to the repository."""
    return ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def lines(page: str, program: str) -> list[list[str]]:
    """Return the arguments of each line in a block of code that calls `program`, without comments."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    shown = [line for block in (*BLOCK.findall(text), *INDENTED.findall(text)) for line in block.splitlines()]
    calls = (shlex.split(line.removeprefix(".venv/bin/"), comments=True) for line in map(str.strip, shown) if line)
    return [call[1:] for call in calls if call and call[0] == program]


def spans(page: str, program: str) -> list[list[str]]:
    """Return the same of spans of code in running text; they may stop short, or hold `...` and names in capitals."""
    found = (span.split("#")[0].removeprefix(".venv/bin/") for span in SPAN.findall((ROOT / page).read_text()))
    return [shlex.split(span)[1:] for span in found if span.startswith(f"{program} ")]


def command(arguments: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that the arguments name, groups passed through, and what is left. KeyError: none."""
    found: click.Command = main
    rest = list(arguments)
    while rest and isinstance(found, click.Group):
        found = found.commands[rest.pop(0)]
    return found, rest


def options(of: click.Command) -> set[str]:
    """Return every option of a command, and of the commands below a group."""
    own = {name for param in of.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    below = of.commands.values() if isinstance(of, click.Group) else ()
    return own.union(*(options(one) for one in below))
