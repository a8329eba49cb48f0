"""README, CONTRIBUTING and docs name what exists: folders, files, commands, options and Make targets."""

import importlib
import re
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MADE_BY_RUNS = {"demo", "dist", "build"}
PATH = re.compile(
    r"`((?:\.ci|dladiff|pipeline|jobs|cluster|tests|docs)/[\w./]*|Makefile|LICENSE|[\w]+\.(?:toml|txt|md))`"
)
PAGES = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def layout_table() -> str:
    return README.split("## Layout")[1].split("\n## ")[0]


def test_layout_table_names_every_top_level_folder() -> None:
    named = {path.split("/")[0] for path in PATH.findall(layout_table()) if "/" in path}
    present = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")) and any(p.iterdir())}
    assert present - MADE_BY_RUNS - {n for n in present if n.endswith(".egg-info")} == named - {".ci"}


def test_layout_table_names_every_module() -> None:
    modules = {str(p.relative_to(ROOT)) for d in ("dladiff", "pipeline") for p in (ROOT / d).glob("*.py")}
    modules = {m for m in modules if not m.endswith("__init__.py")}
    assert modules == {path for path in PATH.findall(layout_table()) if path.endswith(".py")}


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page: str) -> None:
    names = PATH.findall((ROOT / page).read_text())
    assert [n for n in names if not (ROOT / n).exists()] == []


def test_method_page_names_functions_that_exist() -> None:
    names = re.findall(r"`([a-z_]+)\.([A-Za-z_.]+)`", (ROOT / "docs" / "method.md").read_text())
    assert len(names) > 10
    for module, path in names:
        value = importlib.import_module(f"dladiff.{module}")
        for part in path.split("."):
            value = getattr(value, part)


def test_commands_and_options_of_the_readme_exist() -> None:
    group = importlib.import_module("pipeline.cli").main
    assert isinstance(group, click.Group)
    lines = re.findall(r"^dladiff (\w+)(.*?)(?:#.*)?$", README, re.MULTILINE)
    assert lines
    for command, rest in lines:
        options = {o for p in group.commands[command].params for o in p.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= options
    options = {o for c in group.commands.values() for p in c.params for o in p.opts} | {"--help"}
    assert set(re.findall(r"(?<![\w|-])--[a-z][a-z-]*", README)) <= options


def test_make_targets_named_in_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"`make ([a-z]+)", (ROOT / page).read_text())}
    assert named <= targets
    assert {"demo", "test", "check"} <= targets
