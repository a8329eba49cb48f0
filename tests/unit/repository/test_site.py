"""The site: whole and strict, complete against the code, alone on its host; the commands of its first page run."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner

from dladiff.settings.presets import PRESETS, PROFILES
from dladiff.settings.schema import MethodConfig
from dladiff.settings.validate import Settings, group
from docs.reference_settings import as_markdown, docstrings
from pipeline.cli.main import main
from pipeline.cluster.job_file import JobValues, TenantValues
from pipeline.cluster.schedule import Schedule
from pipeline.cluster.settings import Cluster
from pipeline.config import RunConfig
from pipeline.records import schema as rows
from pipeline.retention.retain import Retention
from tests.support import shown
from tests.support.outputs import protected_output

ROOT = Path(__file__).resolve().parents[3]
QUICK = {"plan", "status", "failed", "verify", "finalise", "report", "retention", "version"}
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "src"), ("iframe", "src"), ("object", "data")}


class Page(HTMLParser):
    """Addresses that a built page loads or links to, its anchors, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            if (tag, name) in LOADED and value:
                self.loads.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    found = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        found.loader.exec_module(module)
    return module


def all_fields(kind: type[Settings]) -> Iterator[tuple[type[Settings], str]]:
    for name, field in kind.model_fields.items():
        if inner := group(field):
            yield from all_fields(inner)
        else:
            yield kind, name


def test_settings_page_has_every_field_with_its_meaning(reference: ModuleType) -> None:
    page = reference.configuration()
    for kind, name in (f for top in (RunConfig, MethodConfig, Cluster, Schedule, Retention) for f in all_fields(top)):
        about = docstrings(kind)[name]
        assert f"| `{name}` | " in page
        assert f" | {as_markdown(about)} |" in page, f"{kind.__name__}.{name}"
    assert all(
        f"| `{key}` | " in page for key in (*JobValues.model_fields, *TenantValues.model_fields, *PROFILES, *PRESETS)
    )


@pytest.mark.parametrize(
    "row",
    [
        "| `threshold` | `0.1` | -1 to 1 |",
        "| `space` | `image` | `image`, `aligned` |",
        "| `lr_static` | `5.0e-06` | 0 to 1 |",
        "| `max_actors` | none | at least 1 |",
        "| `input` | must be given | text |",
        "| `start` | `01:00` | time, in quotes |",
        "| `tiny` | `finetuning.iter_opt` | `8` |",
    ],
)
def test_settings_page_has_defaults_and_ranges(reference: ModuleType, row: str) -> None:
    assert row in reference.configuration()


def test_commands_page_has_every_command_and_option(site: Path, built: dict[Path, Page]) -> None:
    text = " ".join(built[site / "reference" / "commands.html"].text.split())

    def look(command: click.Command, path: str) -> None:
        assert path in text and " ".join((command.help or "").split()).replace("`", "") in text, path
        for option in command.params:
            assert not isinstance(option, click.Option) or option.hidden or option.opts[0] in text
            assert str(getattr(option, "envvar", None) or "") in text
        for name, below in command.commands.items() if isinstance(command, click.Group) else ():
            look(below, f"{path} {name}")

    for name, command in main.commands.items():
        look(command, f"dladiff {name}")


def test_manifest_page_has_every_column(site: Path, built: dict[Path, Page], reference: ModuleType) -> None:
    text = built[site / "reference" / "manifest.html"].text
    assert set(reference.SCHEMAS) == set(reference.schemas()) and rows.PHOTOS in reference.schemas().values()
    for schema in reference.schemas().values():
        for column in schema:
            assert column.name in text and str(column.type) in text
            assert column.metadata[b"about"].decode() in text


def test_plain_text_stands_for_itself(reference: ModuleType) -> None:
    assert as_markdown("a_b | <i> [x](y) `c|<d>`") == r"a\_b \| \<i> \[x\](y) `c|<d>`"


def test_no_link_is_dead_and_no_page_orphaned(site: Path, built: dict[Path, Page]) -> None:
    reached = set()
    for file, page in built.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or file.name == "404.html":
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{file.name}: {link}"
            assert not parts.fragment or unquote(parts.fragment) in built[target].anchors, f"{file.name}: {link}"
            reached.add(target)
    assert {file for file in built if file.name != "404.html"} <= reached
    sources = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")}
    assert sources <= {file.relative_to(site) for file in built}


def test_the_site_asks_nothing_of_another_host(site: Path, built: dict[Path, Page]) -> None:
    for page in built.values():
        assert [u for u in page.loads if urlsplit(u).netloc or urlsplit(u).scheme not in ("", "data")] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8"))
    assert not list(site.rglob("*.py"))


@pytest.mark.parametrize("name", ["layers", "layer1", "layer2", "identity", "architecture"])
def test_figures_are_described_dark_and_name_settings_that_exist(name: str) -> None:
    text = (ROOT / "docs" / "figures" / f"{name}.svg").read_text()
    assert "prefers-color-scheme: dark" in text and not re.search(r"(href|src)=", text)
    root = ElementTree.fromstring(text)
    assert root.findtext("{*}title") and root.findtext("{*}desc")
    named = {word for part in root.iter("{*}text") for word in re.findall(r"\b[a-z]{2,}_[a-z0-9]+", part.text or "")}
    assert named <= {field for _, field in all_fields(MethodConfig)}


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
            assert urlsplit(target).scheme or (ROOT / target.partition("#")[0]).exists(), f"{page}: {target}"


@pytest.mark.parametrize(
    ("page", "needed"),
    [
        ("docs/index.md", {"plan", "status", "failed", "verify", "report"}),
        ("docs/use.md", {"plan", "protect", "status", "failed", "verify", "finalise", "report", "retention"}),
        ("README.md", {"plan", "report"}),
    ],
)
def test_commands_of_the_first_pages_run(
    page: str, needed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, on an output made without Ray; tests/integration/test_shown_commands.py runs `protect` too."""
    protected_output(tmp_path, {"0": ["1.png", "2.png"], "1": ["1.png"]})  # named as its folders
    (tmp_path / "photos").symlink_to(tmp_path / "in")
    (tmp_path / "protected").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    run = [call for call in shown.lines(page, "dladiff") if call[0] in QUICK or "--dry-run" in call]
    run = [call for call in run if not any("s3://" in word for word in call)]
    assert needed <= {call[0] for call in run}
    for call in run:
        found = CliRunner().invoke(main, call)
        assert found.exit_code == 0, f"{call}: {found.output}"
