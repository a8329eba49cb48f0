"""README, CONTRIBUTING and docs name what exists: folders, files, commands, options and Make targets."""

import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.config import run_config
from tests.support import shown

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
MADE_BY_RUNS = {"demo", "dist", "build", "site"}
PATH = re.compile(
    r"`((?:\.ci|dladiff|pipeline|jobs|cluster|tests|docs)/[\w./]*|Makefile|LICENSE|[\w]+\.(?:toml|txt|md))`"
)
PAGES = shown.pages()


def test_architecture_names_every_top_level_folder() -> None:
    named = {path.split("/")[0] for path in PATH.findall(ARCHITECTURE) if "/" in path}
    present = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")) and any(p.iterdir())}
    assert present - MADE_BY_RUNS - {n for n in present if n.endswith(".egg-info")} == named - {".ci"}


def test_architecture_names_every_room() -> None:
    """Each package directly below pipeline/ and dladiff/ stands in a table of the page, under its own name."""
    found = [file for package in ("pipeline", "dladiff") for file in (ROOT / package).glob("*/__init__.py")]
    rows = "".join(line for line in ARCHITECTURE.splitlines(keepends=True) if line.startswith("| `"))
    assert {f"{file.parent.relative_to(ROOT)}/" for file in found} - set(PATH.findall(rows)) == set()
    assert found


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page: str) -> None:
    names = PATH.findall((ROOT / page).read_text())
    assert [n for n in names if not (ROOT / n).exists()] == []


def test_method_page_names_functions_that_exist() -> None:
    names = re.findall(r"`([a-z_]+)\.([A-Za-z_.]+)`", (ROOT / "docs" / "method.md").read_text())
    assert len(names) > 10
    for module, path in names:
        pkgutil.resolve_name(f"dladiff.{module}.{path}")


@pytest.mark.parametrize("page", shown.pages())
def test_commands_shown_parse(page: str) -> None:
    """Whole lines are parsed by click, with every type and what is required; spans name what exists."""
    for arguments in shown.lines(page, "dladiff"):
        command, rest = shown.command(arguments)
        if "--help" not in rest:
            command.make_context(command.name, rest)
    for arguments in shown.spans(page, "dladiff"):
        if arguments[0].isupper() or arguments[0] == "...":
            continue
        words = [word for word in arguments if re.fullmatch(r"[a-z-]+", word)]
        command, _ = shown.command(words) if words else (main, [])
        assert {o for o in arguments if o.startswith("--")} <= shown.options(command), arguments


def test_options_named_in_the_readme_exist() -> None:
    assert set(re.findall(r"(?<![\w|-])--[a-z][a-z-]*", README)) <= shown.options(main)
    assert len(shown.lines("README.md", "dladiff")) > 5


def test_settings_shown_are_accepted(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "use.md").read_text(), re.MULTILINE | re.DOTALL)
    (file := tmp_path / "run.yaml").write_text(block)
    assert run_config(file, {"input": "photos", "output": "protected"}).method_config().protection == "dladiff"


@pytest.mark.parametrize("page", shown.pages())
def test_modules_shown_exist(page: str) -> None:
    modules = re.findall(r"python -m ([\w.]+)", (ROOT / page).read_text())
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def test_make_targets_named_in_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    calls = [c for page in PAGES for c in (*shown.lines(page, "make"), *shown.spans(page, "make"))]
    assert {word for call in calls for word in call if word.islower()} <= targets
    assert {"demo", "test", "check"} <= targets
